"""Ranks the choices of an axis by how well and how stably they train over one window of learning rates.

All choices share the surrounding model, the batches and their order, the number of steps and the learning rates. One
seed over the whole window gives each choice's LR sensitivity and selects its learning rate. The loss at that learning
rate is then measured with other seeds, because the lowest of several noisy losses is biased low.
"""
