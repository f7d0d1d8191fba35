"""Attention: projections, query and key transforms, a mixing rule (one file each in this folder), an output projection."""
