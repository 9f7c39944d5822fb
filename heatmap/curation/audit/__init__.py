"""Likely label errors: labels that trained runs contradict or that no face has, ranked.

A label is held to what runs see that were not trained on it, in units of the error that their
calibration expects there, and to a shape model of all labels.

    residuals   how suspicious every face is, and why
    injected    known errors put into labels, and how many of them the audit finds
    folder      a contest's folder audited: predictions, tables and the sheet
"""
