"""Claims that an experiment's file states in the words of claims.yaml, and the finding that a sweep is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError
from train.findings.base import Finding, all_findings, checked_claim, find

if TYPE_CHECKING:
    from train.config.schema import Config
    from train.results.sweep import SweepResults


def finding_of(sweep: SweepResults) -> Finding | None:
    """Returns the claim of the sweep's experiment, else the shipped finding that it tests, or None for neither.

    Raises ConfigError if there is a fault in the claim.
    """
    if sweep.claim is None:
        return find(sweep.finding) if sweep.finding else None
    runs = sweep.runs
    arms = list(dict.fromkeys(runs["arm"].dropna())) if "arm" in runs else []
    return _stated(sweep.name, sweep.claim, arms, runs["model.name"], runs["optimizer.lr"], runs["seed"])


def check_claim(
    name: str, claim: Mapping[str, Any] | None, arms: Sequence[str | None], configs: Sequence[Config]
) -> Finding | None:
    """Returns what will judge a sweep with these arms and runs, like `finding_of`. Raises ConfigError for a fault."""
    if claim is None:
        return all_findings().get(configs[0].finding or "")
    models, lrs, seeds = zip(*((c.model.name, c.optimizer.lr, c.seed) for c in configs), strict=True)
    return _stated(name, claim, [arm for arm in dict.fromkeys(arms) if arm is not None], models, lrs, seeds)


def _stated(name: str, claim: Mapping[str, Any], arms: Sequence[str], models: Any, lrs: Any, seeds: Any) -> Finding:
    """Returns the claim as a finding. Arms, grid and number of seeds are by default those of the sweep."""
    if not arms and "arms" not in claim:
        raise ConfigError(
            "claim.arms: the experiment names no arms: give it `arms`, or tell them apart by a config key, "
            "claim.arms={column: qk_norm.name, names: [none, layernorm]}"
        )
    of = (claim.get("primary") or {}).get("of", "") if isinstance(claim.get("primary"), dict) else ""
    defaults = {
        "source": "own claim",
        "minutes": 0,
        "paper": {"quantity": str(of), "number": "own claim"},
        "arms": list(arms),
        "grid": {"models": sorted({str(m) for m in models}), "lrs": sorted({float(lr) for lr in lrs})},
        "seeds": len({int(seed) for seed in seeds if seed == seed}),
        "contradicted_by": "an effect of the other sign",
        "frozen": None,
        "figure": {"kind": "losses"},
    }
    return checked_claim(name, {**defaults, **claim}, "claim")
