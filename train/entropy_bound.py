"""`stabilab inspect entropy_bound RUN ...` compares the attention entropy of trained models with its lower bound.

Zhai et al. 2023, theorem 3.1: softmax over T logits of Euclidean norm s has an entropy of at least
log(1 + (T - 1) b) + s sqrt(T (T - 1)) b / (1 + (T - 1) b) with b = exp(-s sqrt(T / (T - 1))). The norm s is at most
scale ||W_Q|| ||W_K|| ||X X^T||, with spectral norms of a head's projections and of the layer's input. The theorem uses
||W_K W_Q^T|| instead of the product, which does not hold with rotary positions between the two projections. W_Q and W_K
include the multipliers of the parametrization. A position bias adds to a row's logits, so its norm is added to s.

Measures three means over heads and rows for each block, on a batch of validation data: the entropy, the bound at the
row's own norm, and the bound at the theorem's norm. T is the number of visible keys of a row. Logits are centred before
their norm is taken, because softmax does not depend on their mean.
"""

from __future__ import annotations

from train.inspect import measure_runs


def main() -> None:
    measure_runs("entropy_bound", __doc__, "print_bounds", "folders of ended runs without qk-norm")


if __name__ == "__main__":
    main()
