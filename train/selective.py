"""`stabilab inspect selective RUN ...` prints the error rates of trained runs on the tokens that they are surest of.

Tokens of the validation set are ordered by confidence. The risk at coverage c is the error rate of the share c of most
confident tokens, where an error is a token other than the one of the largest logit. AURC is the area under the risk,
its mean over all coverages. "Of random" is how far AURC is from that of a perfect order, which has all errors last,
relative to that of a random order: 0 is perfect, 1 is random.

Two confidences are compared: the largest softmax probability, and the largest centred logit over the 2-norm of all
centred logits, which repairs the order of models trained with label smoothing. Tokens of the same confidence have no
order and count as the mean over all orders.

Xia et al. 2025 (Towards Understanding Why Label Smoothing Degrades Selective Classification and How to Fix It, arXiv
2403.14715); Cattelan & Silva 2023 (arXiv 2305.15508). There, the order of the norm is chosen on held-out data, and AURC
is a trapezoid from a risk of 0 at coverage 0, which differs by less than 1 / (number of tokens).
"""

from __future__ import annotations

from train.inspect import measure_runs


def main() -> None:
    measure_runs("selective", __doc__)


if __name__ == "__main__":
    main()
