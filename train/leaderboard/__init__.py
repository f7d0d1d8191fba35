"""A leaderboard of choices: how well and how stably each trains over one window of learning rates.

Every choice sees the same batches in the same order, has the same model around it, the same number of steps and the
same learning rates. One seed over the whole window gives each choice's LR sensitivity and chooses its learning rate;
its loss there is then measured with seeds that had no part in that choice, since the lowest of several noisy losses is
lower than what the next run will give.
"""
