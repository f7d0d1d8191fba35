"""`stabilab inspect superweights RUN ...` looks for super weights in the last matrices of trained MLPs.

In one batch of validation text, the largest magnitude that the last matrix of an MLP reads is in column c, and the
largest that it writes in row r. W[r, c] is the candidate of that matrix. The command prints the candidate whose largest
output stands out most from the median output of its matrix, and how much the validation loss rises if it is set to
zero; for comparison, if 100 random weights of all these matrices are, and if the 100 largest others are.

Yu et al. 2024 (The Super Weight in Large Language Models, arXiv 2411.07191); mengxiayu/LLMSuperWeight. There, outputs
above 50 count as spikes. Small models may have none: then the candidate's effect is like that of the others.
"""

from __future__ import annotations

from train.inspect import measure_runs


def main() -> None:
    measure_runs("superweights", __doc__)


if __name__ == "__main__":
    main()
