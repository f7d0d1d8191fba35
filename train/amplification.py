"""`stabilab inspect amplification RUN ...` prints the validation loss of trained runs with amplified attention logits.

Kerce & Fox 2026 (Dual-Stream Transformer, arXiv 2603.07461) multiply the logits of all heads by 1 to 16 at evaluation.
Attention then goes from soft mixing to picking one token, and the increase of the loss shows how much the model relies
on soft mixing. The factor applies to the full logits, scale q k^T plus the position bias, so the measurement only makes
sense for mixing rules that are functions of these logits.

The loss is that of the run's validation, the plain cross-entropy over its validation batches in nats per token, of
soft-capped logits if the run caps them. Changes are relative to the loss at factor 1.
"""

from __future__ import annotations

from train.inspect import measure_runs


def main() -> None:
    measure_runs("amplification", __doc__, "print_losses")


if __name__ == "__main__":
    main()
