"""How good predictions are.

metrics      the contest's MSE, NME and other scores
calibration  the expected error of a landmark, from its heatmap's peak and spread
sheets       images with their predicted and true landmarks
report       an HTML page about an evaluation
compare      several runs, image by image
"""
