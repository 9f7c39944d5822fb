"""Tools that check and clean a data set.

check       reports every problem of a folder
duplicates  finds images that look alike
stats       channel means and deviations, sizes and poses
split       stores and verifies a split
symmetry    infers the mirror permutation and groups from labels
audit       ranks suspicious labels
review      writes a page to look at them and correct them
apply       makes a table with the corrections
"""
