"""`stabilab inspect hessian RUN ...` prints the sharpness that Adam sees at the final weights of trained runs.

Adam's step is -LR P^-1 m with the diagonal P = (sqrt(v) + eps) / factor, the factor being that of the tensor's LR.
Near a minimum it is unstable where the largest eigenvalue of P^-1 H, H the Hessian of the loss, exceeds
(2 + 2 beta1) / ((1 - beta1) LR), which is 38 / LR at beta1 0.9 (Cohen et al. 2022, arXiv 2207.14484). The table has
this eigenvalue, the LR at the edge that follows from it, and the run's peak LR.

Lanczos steps on P^-1/2 H P^-1/2 find it, with Hessian-vector products from central differences of gradients, so that
any loss and mixing rule will do. Where a tenth of their displacement changes the result by more than 10 %, as in broken
runs, there is none. H is that of the mean loss of 8 training batches, and v the mean square of their clipped gradients,
both at the final weights: runs don't keep the optimizer's v.
"""

from __future__ import annotations

from train.inspect import measure_runs


def main() -> None:
    measure_runs("hessian", __doc__)


if __name__ == "__main__":
    main()
