"""Reparametrizations: constraints on weights, or on what is computed from them, during training. One file each."""
