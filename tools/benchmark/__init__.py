"""Races between this project, well-maintained peers and the machine's limits.

The contenders of a race compute the same thing. A limit is work that no contender can avoid. All
run in random order, round by round; medians and ratios within the race are reported.
Peers: kornia, dsntnn, and PyTorch operations on whole heatmaps, as papers and contestants write
them.
"""
