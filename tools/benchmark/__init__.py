"""Races between this project, well-kept peers and the machine's own limits, in one run.

The contenders of a race compute the same thing. A limit is a part that every contender needs. All
run in turn, in random order, round by round; medians and ratios within the race are reported.
Peers: kornia, dsntnn, and PyTorch operations on whole heatmaps, as papers and contestants write
them.
"""
