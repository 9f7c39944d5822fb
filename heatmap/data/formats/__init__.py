"""Other data sets' files, to the contest's layout and back: a module a format.

Each has `read(source, ...) -> LabelledFaces` and `write(faces, out, ...)`, and its docstring says
what the format's numbers mean; `layout` does the same for the contest's own folder. Points and
boxes of `LabelledFaces` are in image pixels with the centre of the top-left pixel at (0, 0), as
everywhere here, so readers and writers shift those of formats that count otherwise. Kaggle's facial
keypoints are a contest of their own, with submissions, and are in `contest.kaggle15`.
"""
