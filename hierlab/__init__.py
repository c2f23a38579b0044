"""hierlab: a class tree and rasters go in, tree-consistent maps and honest tables come out."""

__version__ = "0.1.0"
