"""Trials of `tools/torture.py`: killed runs, and damaged input files."""
