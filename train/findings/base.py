"""What a finding is: a row of claims.yaml, which says what a sweep has to show, and how its runs are judged.

A claim is written before the runs that judge it, in YAML alone; README.md has the keys. A bad row is one line of text.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from conf.axis import ConfigError, near
from train.findings.arms import Arms, arms, by_value
from train.findings.checks import Base, Compared, Equal, NoWorse
from train.findings.figures import FigureSpec, draw
from train.findings.fitness import fitness
from train.findings.levels import Crosses, Level, Ranks, Separates
from train.findings.quantities import Of, quantity
from train.findings.trends import Slopes, Stays, Trend
from train.results.style import LINES
from train.results.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FindingGroup = Literal["headline", "core", "long"]
"""What is run together: `headline` is Figure 1, `core` takes an hour with it, each of `long` its minutes."""

AnyCheck = Annotated[
    Compared | NoWorse | Equal | Trend | Stays | Slopes | Level | Crosses | Separates | Ranks,
    Field(discriminator="kind"),
]
"""What a claim can ask of a sweep."""

CLAIMS = Path(__file__).with_name("claims.yaml")
PLACES = ("first", "middle", "last", "others")


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Paper(Row):
    """What the source measured."""

    quantity: str
    number: str


class ArmsOf(Row):
    """How runs are sorted into arms: by name, by the values of a config key, or by what else tells them apart."""

    names: list[str] = []
    """Arms of the experiment; without any, those of `by` or `where`."""
    column: str | None = None
    """A config key whose values are the names."""
    by: str | None = None
    """A config key: the arms of the experiment in the order of its values."""
    missing: float | None = None
    """What null stands for in `by`."""
    where: dict[str, dict[str, float | str]] = {}
    """By arm, the config values of its runs."""
    same_size: float = Field(default=1.0, ge=1)
    """Sizes within this factor count as one N."""

    @model_validator(mode="after")
    def _one_way(self) -> ArmsOf:
        if sum(map(bool, (self.names, self.by, self.where))) != 1:
            raise ValueError("give one of names, by and where")
        return self

    @property
    def known(self) -> list[str] | None:
        """Returns the names, where they are known before a sweep is."""
        return self.names or list(self.where) or None

    def sort(self, finding: str, runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Arms:
        names = self.known or []
        if self.column:
            runs = runs.assign(arm=runs.get(self.column))
        if self.by:
            if self.missing is not None and self.by in runs:
                runs = runs.assign(**{self.by: runs[self.by].astype(float).fillna(self.missing)})
            names = by_value(finding, runs, self.by)
        for values in self.where.values():
            absent = [key for key in values if key not in runs]
            if absent:
                raise ConfigError(f"finding {finding} needs runs of different {absent[0]}: run experiment={finding}")
        if self.where:
            runs = runs.assign(arm=[self._arm(row) for row in runs.to_dict("records")])
        if self.same_size > 1:
            runs = runs.assign(size=runs["size"].map(self._merged(runs["size"].unique().tolist())))
        return arms(finding, runs, names, metrics)

    def _arm(self, row: Mapping[Any, Any]) -> str | None:
        for arm, values in self.where.items():
            if all(_same(row[key], value) for key, value in values.items()):
                return arm
        return None

    def _merged(self, sizes: list[float]) -> dict[float, float]:
        """Returns each size with the smallest of those within the factor."""
        found: dict[float, float] = {}
        for n in sorted(sizes):
            last = max(found.values(), default=0.0)
            found[n] = last if last and n / last <= self.same_size else n
        return found


def _same(found: Any, wanted: float | str) -> bool:
    if isinstance(wanted, str):
        return bool(found == wanted)
    return found is not None and math.isclose(float(found), wanted, rel_tol=1e-9, abs_tol=1e-12)


class Grid(Row):
    """What is swept."""

    models: list[str] = Field(min_length=1)
    lrs: list[float] = Field(min_length=1)


class Deviation(Row):
    """What was done otherwise than the claim had said, and when."""

    date: datetime.date
    text: str


class Finding(Row):
    """A published claim with what decides it."""

    name: str
    claim: str
    source: str
    group: FindingGroup = "core"
    minutes: float
    """What its experiment takes on 2 cores when no run is there yet."""
    paper: Paper
    arms: Annotated[ArmsOf, BeforeValidator(lambda v: {"names": v} if isinstance(v, list) else v)]
    primary: AnyCheck
    """The check that decides."""
    others: list[AnyCheck] = []
    """Checks that are shown and don't decide."""
    grid: Grid
    seeds: int = Field(ge=1)
    """Seeds on every curve that decides."""
    contradicted_by: str
    baseline: str | None = None
    """The arm whose losses say whether the sweep is fit for judging; the first one by default."""
    no_mixing: str | None = None
    """An arm without token mixing, where the sweep has one."""
    needs_fitness: bool = True
    frozen: datetime.datetime | None
    """When the claim was committed as it is, in UTC; runs that judge it start later. null: not frozen yet."""
    deviations: list[Deviation] = []
    figure: FigureSpec
    notes: list[str] = []

    @model_validator(mode="after")
    def _sound(self) -> Finding:
        if not self.primary.why:
            raise ValueError("primary.why: give the reason for the threshold")
        known = self.arms.known
        if self.figure.kind == "logits" and known is not None and len(known) > len(LINES):
            raise ValueError(f"figure.kind: logits shows up to {len(LINES)} arms, there are {len(known)}: use losses")
        for check in (self.primary, *self.others):
            for word in _arms_named(check):
                if known is not None and word not in known and word not in PLACES:
                    raise ValueError(f"arm {word} is not one of the claim's: {near(word, known)}")
        return self

    @property
    def checks(self) -> list[AnyCheck]:
        return [self.primary, *self.others]

    @property
    def measurements(self) -> list[str]:
        """Returns what has to be measured at the final weights of runs before they are judged: modules of
        train.measure."""
        named: list[Of] = [*self.figure.of, *(check.of for check in self.checks)]
        named += [of for check in self.checks if (of := getattr(check, "than_of", None)) is not None]
        return sorted({what for of in named if (what := quantity(of).after) is not None})

    @property
    def whole_runs(self) -> str:
        """Returns what the check that decides reads of broken runs after the share from which one may be stopped, as
        text, which is empty for nothing."""
        check = self.primary
        read = [of for key in ("of", "than_of", "better_than") if (of := getattr(check, key, None)) is not None]
        late = [quantity(of).label for of in read if quantity(of).late]
        return "" if check.runs == "sound" else ", ".join(late)

    def sorted(self, runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Arms:
        return self.arms.sort(self.name, runs, metrics)

    def verdict(self, runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
        """Returns what the runs say of the claim. `runs` is the frame of `train.results.sweep.load_sweep`, all runs in
        it, ended or not; `metrics` gives the rows of a run by its name."""
        sweep = self.sorted(runs, metrics)
        return Verdict(
            self.name,
            [check.judge(sweep) for check in self.checks],
            [*self.notes, *self._timing(runs), *self._grid(sweep), *sweep.notes()],
            self.claim,
            self.source,
            fitness(sweep, sweep.named(self.baseline or "first")[0], self.no_mixing, self.needs_fitness),
            self.few(sweep, runs),
        )

    def draw(self, runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame], title: str = "") -> dict[str, Figure]:
        """Returns figures by file name, each with the title."""
        return draw(self.figure, self.sorted(runs, metrics), self.checks, title)

    def few(self, sweep: Arms, runs: pd.DataFrame) -> str:
        """Says what seeds or sizes of the claim are missing, "" for none."""
        return self._few_seeds(sweep) or self._few_sizes(runs)

    def _few_seeds(self, sweep: Arms) -> str:
        named = self.primary.named(sweep)
        seeds = [len(curve.by_seed) for (_, arm), curve in sweep.curves.items() if arm in named]
        few = min(seeds, default=self.seeds)
        return (
            f"{few} seed{'s' if few > 1 else ''} a curve where the claim asks for {self.seeds}"
            if few < self.seeds
            else ""
        )

    def _few_sizes(self, runs: pd.DataFrame) -> str:
        """Returns what sizes are missing: a sweep at others than the claim's, as the paper's, has to have as many."""
        there = set(runs["model.name"].dropna()) if "model.name" in runs else set(self.grid.models)
        asked = set(self.grid.models)
        return f"{len(there)} of the claim's {len(asked)} model sizes" if len(there) < len(asked) else ""

    def _timing(self, runs: pd.DataFrame) -> list[str]:
        younger = self.younger(runs)
        if self.frozen is None:
            return ["The claim is not frozen yet: these runs explore"]
        words = {True: "every run started later", False: "NOT every run started later", None: "the runs don't say when"}
        changes = [f"Deviation of {one.date}: {one.text}" for one in self.deviations]
        return [f"The claim was frozen on {self.frozen:%Y-%m-%d at %H:%M} UTC; {words[younger]}", *changes]

    def younger(self, runs: pd.DataFrame) -> bool | None:
        """Returns whether every ended run started after the claim was frozen; None where that isn't known."""
        ended = runs[runs["ended"]]
        if self.frozen is None or "started" not in ended or ended["started"].isna().any() or ended.empty:
            return None
        return bool((ended["started"] > self.frozen.replace(tzinfo=datetime.UTC).timestamp()).all())

    def _grid(self, sweep: Arms) -> list[str]:
        swept = {float(f"{lr:.6g}") for lr in sweep.runs["optimizer.lr"].unique()}
        lacking = [lr for lr in self.grid.lrs if float(f"{lr:.6g}") not in swept]
        return [f"Not the claim's LR grid: {', '.join(f'{lr:g}' for lr in lacking)} not swept"] if lacking else []


def _arms_named(check: Base) -> list[str]:
    found: list[str] = []
    for key in ("arm", "than", "minus"):
        value = getattr(check, key, None)
        found += [value] if isinstance(value, str) else value or []
    return found


def read_claims(path: Path) -> dict[str, Finding]:
    """Reads a file of claims. ConfigError, one line, for the first fault in it."""
    try:
        rows = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as fault:
        raise ConfigError(f"{path.name}: {' '.join(str(fault).split())}") from None
    if not isinstance(rows, dict):
        raise ConfigError(f"{path.name}: a mapping from names of findings to their claims is needed")
    return {name: checked_claim(name, row if isinstance(row, dict) else {}, f"{path.name}: {name}")
            for name, row in rows.items()}  # fmt: skip


def checked_claim(name: str, row: Mapping[str, Any], place: str) -> Finding:
    """Returns the finding of a row. Raises ConfigError for its first fault, which `place` says where to find."""
    try:
        return Finding.model_validate({"name": name, **row})
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, (place, *first["loc"])))
        raise ConfigError(f"{at}: {first['msg'].removeprefix('Value error, ')}") from None


@cache
def all_findings() -> Mapping[str, Finding]:
    """Returns every finding by name, in the order of claims.yaml."""
    return read_claims(CLAIMS)


def find(name: str) -> Finding:
    """Returns a finding by name. Raises ConfigError for an unknown one."""
    found = all_findings()
    if name not in found:
        raise ConfigError(f"finding={name} is not known: {near(name, list(found))}")
    return found[name]
