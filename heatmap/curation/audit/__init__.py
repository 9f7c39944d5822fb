"""Likely label errors: what labels and trained runs say of every face, on one scale, ranked.

Faces are held to a shape model of other people's faces, to their own picture, and to what trained
runs see. Every detector gives a number that is larger the more suspicious a face is; `tails` turns
the numbers of all into the share of faces that would be as suspicious, and the smallest share of a
face ranks it.

    detectors   numbers, tails and rank
    injected    known errors put into labels, and how many of them the audit finds
    folder      a contest's folder audited: tables, lists, repairs and pictures
"""

from heatmap.curation.audit.detectors import LISTED, Findings, Labels, audit
from heatmap.curation.audit.injected import Recall, self_test

__all__ = ["LISTED", "Findings", "Labels", "Recall", "audit", "self_test"]
