"""`stabilab inspect neurons RUN ...` prints the shares of dead and positional neurons in the MLPs of trained runs.

A neuron is active on a token if what enters its non-linearity is positive: the pre-activation or, in a gated MLP, the
gate. It is dead if it is active on no token of the validation set. Its positional information is the mutual information
between its activity and the position in the context, in nats, less what chance adds in so few sequences; a neuron with
more than 0.05 counts as positional.
Experts see gathered tokens, learned sinks among them, without positions, so theirs is not given.

After Voita, Ferrando & Nalmpantis 2023 (Neurons in Large Language Models: Dead, N-gram, Positional, arXiv 2309.04827),
who define dead neurons for ReLU and find that their share grows with model size. The indicator and the threshold are
ours.
"""

from __future__ import annotations

from train.inspect import measure_runs


def main() -> None:
    measure_runs("neurons", __doc__)


if __name__ == "__main__":
    main()
