"""Races between this project, well-kept peers and the machine's own limits, in one run.

Every race has contenders that give the same thing, and limits: what the machine needs for a part
that nobody can leave out. All run in turn, in random order, round by round; the median counts, and
what is reported are ratios within the race. Peers: kornia, dsntnn, and PyTorch as the papers' and
the contestants' code is written, in operations on whole maps.
"""
