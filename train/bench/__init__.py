"""Measures the cost of training and of each choice, as ratios of times taken in turn in one process."""
