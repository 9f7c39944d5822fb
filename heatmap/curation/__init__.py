"""The care of a data set, before and after training.

check       every problem of a folder at once
duplicates  images that look alike
stats       channel means and deviations, sizes and poses
split       a split that is stored and verified
symmetry    the mirror permutation and groups, inferred from labels
audit       likely label errors, ranked
"""
