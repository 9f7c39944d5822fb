"""Readers of other data sets' files, the contest's layout, and a writer of COCO keypoints.

Each format is a module with `read(source, ...) -> LabelledFaces`; its docstring documents the
files. Points and boxes are in image pixels, and the centre of the top-left pixel is (0, 0): readers
shift the coordinates of formats with another origin. A UserError names the file, row and column.
`layout` reads and writes contest folders. `kaggle15` also writes submissions for Kaggle.
"""
