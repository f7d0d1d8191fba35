"""`stabilab inspect superweights RUN ...` looks for super weights in the last matrices of trained MLPs.

In one batch of validation text, the largest magnitude that the last matrix of an MLP reads is in column c, and the
largest that it writes in row r. W[r, c] is the candidate of that matrix. It is behind a spike if both magnitudes are
above 50. The one with the largest output is set to zero and the search repeated, until none is left (16 at most).

The command prints the weights behind spikes and how much the validation loss rises if all of them are set to zero; for
comparison, if 100 random other weights of all these matrices are, and if the 100 largest others are. They are super
weights if they cost more than these. Where nothing spikes, it prints the candidate whose largest output stands out most
from the median output of its matrix. At high learning rates all outputs may be above 50: look at the ratio.

Norms in front of the matrix or behind it (placement=sub_ln, ngpt, peri, post and others) set the scale of what it reads
or writes. Such runs are refused.

Yu et al. 2024 (The Super Weight in Large Language Models, arXiv 2411.07191); mengxiayu/LLMSuperWeight.
"""

from __future__ import annotations

from train.inspect import measure_runs


def main() -> None:
    measure_runs("superweights", __doc__)


if __name__ == "__main__":
    main()
