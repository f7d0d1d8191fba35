"""Imports Lightning without what its metrics package would load for metrics that nothing here uses.

Lightning imports torchmetrics, which imports scipy.signal and matplotlib where they are installed: a second of CPU time
at the start of each run. It asks lightning_utilities whether they are there.
"""

from __future__ import annotations

import sys
from typing import Any

UNUSED = ("matplotlib", "scipy")


def import_lightning() -> None:
    """Imports lightning.pytorch while torchmetrics finds none of the unused packages, unless it is imported already.

    torchmetrics goes on without them, as it does where they aren't installed. They can be imported as ever.
    """
    if "torchmetrics" in sys.modules:
        return
    from lightning_utilities.core import imports

    available, check = imports.package_available, imports.RequirementCache._check_available

    def without_unused(requirement: Any) -> None:
        check(requirement)
        requirement.available &= requirement.requirement not in UNUSED

    imports.package_available = lambda name: name not in UNUSED and available(name)  # type: ignore[assignment]
    imports.RequirementCache._check_available = without_unused  # type: ignore
    try:
        import lightning.pytorch  # noqa: F401
    finally:
        imports.package_available = available
        imports.RequirementCache._check_available = check  # type: ignore[method-assign]
