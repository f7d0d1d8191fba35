"""Mixtures of experts, `mlp=moe`."""
