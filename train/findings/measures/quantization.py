"""What a run's validation loss gains by rounding its final weights and activations to 8 or 4 bits.

After Bondarenko et al. 2023 (arXiv 2306.12929) for W8A8, and Zuhri et al. 2025 (arXiv 2504.20966) for weights alone.
`stabilab inspect quantized` says what is rounded. Losses of the same weights on the same batches differ by rounding
alone, so that the noise between seeds is not in a gap.
"""

from __future__ import annotations

import math
from functools import partial

from train.findings.arms import Arms
from train.findings.quantities import Row, measure

LEAST = 1e-4
"""Nats below which all gaps are taken for equal, so that gaps of zero or below it have a factor: about what rounding to
8 bits moves a loss by where nothing is lost."""


def gap(rounding: str, row: Row, sweep: Arms) -> float:
    """Returns log of the loss after this rounding minus that in fp32, in nats; NaN for a run that was not measured."""
    gained = float(row.get(f"quantized/{rounding}", math.nan)) - float(row.get("quantized/fp32", math.nan))
    return gained if math.isnan(gained) else math.log(max(gained, LEAST))


for _rounding in ("W8", "W4", "W8A8", "W4A4"):
    _label = f"loss gained by {_rounding} (nats)"
    measure(f"gap_{_rounding}", _label, log=True, after="quantized")(partial(gap, _rounding))
