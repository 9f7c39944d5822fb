"""Readers of other data sets' files, the contest's layout, and a writer of COCO keypoints.

A module a format has `read(source, ...) -> LabelledFaces`, and its docstring says what the format's
numbers mean. Points and boxes of `LabelledFaces` are in image pixels with the centre of the
top-left pixel at (0, 0); readers shift those of formats that count otherwise. What is missing or
wrong raises a UserError that names file, row and column. `layout` reads and writes the contest's
own folder. `kaggle15` converts and answers a contest of its own.
"""
