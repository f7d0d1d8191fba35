"""Attention: projections, query and key transforms, a mixing rule (one file each here), an output projection."""
