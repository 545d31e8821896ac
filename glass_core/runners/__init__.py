"""Compute runners, one sub-package each; the folder name is the public name."""
