"""`stabilab inspect separability RUN ...` prints how well the attention of trained runs separates the keys it selects.

In each row of a head, N keys of largest weight a_j are selected; s is the sum of their a_j x_j, where x_j are the
values. "Share" is that of the selected keys whose a_j x_j is closer to s than that of every other key. "d~" is the
distance of s from the sum of the other a_j x_j, over the largest |x_j| that the row sees, which bounds it. Both are
means over rows that see more than N keys of nonzero weight, for N = 2, 8 and 32, on 16 sequences of validation data.

For softmax, D is the bound |q| max |k| of the scaled logits, mean over rows, plus the largest position bias. Weights of
L logits within it are from e^(-2D) / L to e^(2D) / L. "Gradient" is the spectral norm of the Jacobian diag a - a a^T of
weights by logits, mean over rows of at least two keys. It is at most 0.5, and near 0 both in rows of many equal weights
and in saturated ones.

Mudarisov et al. 2025 (Limitations of Normalization in Attention Mechanism, arXiv 2508.17821), who find for GPT-2 that
the share saturates at 70 to 85% and falls with N. We know definitions from reviews. The ball in which keys count as
separable, and values as the vectors that are weighted, are our reading. Rules whose weights don't sum to 1 over keys
are refused; those other than softmax have no D and no gradient here.
"""

from __future__ import annotations

from train.inspect import measure_runs


def main() -> None:
    measure_runs("separability", __doc__)


if __name__ == "__main__":
    main()
