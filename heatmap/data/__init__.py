"""From files to the network's input.

contest     the contest's files: landmark table, images, split, score, submission
formats     other data sets' files, converted to the contest's layout
synthetic   drawn faces with 971 exact landmarks
samples     images to uint8 crops with their frames; the loader
augment     random changes of crops, applied on the device
"""
