"""`stabilab inspect massive RUN ...` looks for massive activations in the residual streams of trained runs.

After each block, it prints the three largest entries of the residual stream over all validation sequences, with token
position, channel, value, and magnitude over the median of the same sequence. An entry is massive if its magnitude is
above 100 and 1,000 times this median. "Same channel" is the share of sequences whose largest entry is in the channel
named.

Then, in every sequence, the largest entry of one channel after one block is set to zero, and to its mean over
sequences; the command prints how much the loss rises. The channel is that of the first massive activation or, if there
is none, of the entry that stands out most. For comparison, the channel of median magnitude is set to zero. If massive
activations act as constant biases, zero hurts and the mean does not. Last, the channel is compared with that of the
super activation, the strongest output of an MLP (`stabilab inspect superweights`).

Sun et al. 2024 (Massive Activations in Large Language Models, arXiv 2402.17762); locuslab/massive-activations, which
sets known entries of known models. The loss is that of the run's validation, in nats per token.
"""

from __future__ import annotations

from train.inspect import measure_runs


def main() -> None:
    measure_runs("massive", __doc__)


if __name__ == "__main__":
    main()
