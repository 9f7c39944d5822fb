"""Reads and writes what a run leaves on disk; `folder` names the files."""
