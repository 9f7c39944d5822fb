"""The machine a program runs on: files, processes, devices and clocks.

Nothing here knows of images or landmarks.

files        files and folders written whole or not at all; JSON
distributed  the processes that torchrun starts
machine      devices, memory and versions
parallel     work shared by worker processes
stopwatch    where a step's time goes, also on a GPU
compiling    torch.compile, or the same arithmetic eagerly
columns      text in columns
"""
