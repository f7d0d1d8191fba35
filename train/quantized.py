"""`stabilab inspect quantized RUN ...` prints the validation loss of trained runs after rounding to 8 and 4 bits.

W8 and W4 round weights: embeddings and all matrices of the blocks, symmetric, each tensor (with --rows each row) with a
scale of max|w| / (2^(b-1) - 1). The head, norms and logits stay in fp32. W8A8 and W4A4 also round activations,
asymmetric, with a fixed range: a running minimum and maximum with momentum 0.9 over 16 training batches. These are the
outputs of embeddings, norms and matrices, what the last matrix of each sublayer reads, and the residual stream after
each sublayer. Attention logits and weights are not rounded, as fused attention never has them.

After Bondarenko et al. 2023 (Quantizable Transformers, arXiv 2306.12929) and
Qualcomm-AI-research/outlier-free-transformers, which also round logits and weights of attention. The loss is that of
the run's validation. Changes are relative to fp32.
"""

from __future__ import annotations

from train.cli.terminal import Parser, exit_with, named_folder
from train.runfolder.folder import require_trained


def main() -> None:
    parser = Parser(prog="stabilab inspect quantized", description=__doc__)
    parser.add_argument("runs", type=named_folder, nargs="+", help="folders of ended runs")
    parser.add_argument("--rows", action="store_true", help="scale the weights of each row by themselves")
    given = parser.parse_args()

    def action() -> None:
        require_trained(given.runs)
        from train.measure.quantized import print_found

        print_found(given.runs, given.rows)

    exit_with(action)


if __name__ == "__main__":
    main()
