"""Experiments as data, the runs behind every number of ours, and their reports."""
