"""Ranks suspicious labels: those that trained runs contradict, or that no face has.

residuals   scores every label and gives reasons
injected    self-test: how many injected errors the audit finds
folder      audits a contest folder: predictions, table and sheet
"""
