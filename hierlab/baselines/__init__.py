"""Comparators that no library has, a file each."""
