"""Evaluates predictions.

metrics      the contest's MSE, NME and other scores
calibration  the expected error of a landmark, from its heatmap's peak and spread
sheets       images with their predicted and true landmarks
report       an HTML report of an evaluation
compare      several runs, image by image
"""
