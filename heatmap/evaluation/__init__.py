"""How good predictions are.

metrics      the contest's score, NME and the rest
calibration  the error to expect from a heatmap's peak and spread
sheets       images with their predicted and true landmarks
report       a page about one run
compare      several runs, image by image
"""
