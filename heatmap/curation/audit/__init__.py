"""Ranks suspicious labels: those that trained runs or a model of face shapes contradict.

residuals   scores every label and gives reasons
injected    self-test: how many injected errors the audit finds
folder      audits a contest folder: predictions and table
"""
