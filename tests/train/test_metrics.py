"""The registry of metrics, compared with what tiny runs record."""

from pathlib import Path

import pytest

from tests.conftest import composer
from tests.train.helpers import TINY
from train.docs.metrics import files
from train.run.trainer import train
from train.runfolder.files import read_rows
from train.runfolder.folder import RunFolder
from train.runfolder.metrics import METRICS

NEEDS = sorted({metric.needs for metric in METRICS})
# Choices that add tensors, drop probes or change what a block is.
OTHERS = [
    "", "attention=differential", "attention=mlp", "share_attention=2", "optimizer=muon", "optimizer=lion",
    "placement=ngpt norm=none qk_norm=none", "eval_every=3", "mlp=swiglu norm=gated value_residual=learnable",
    "attention=mamba2",
]  # fmt: skip


def recorded(parent: Path, overrides: str) -> set[str]:
    """Returns the names of metrics in the files of a run, on other data than TINY's if the overrides say so.

    A run with attention=mamba or fit has softmax too, whose probes every other run records.
    """
    chosen = overrides.split()
    base = [o for o in TINY if not o.startswith("data")] if "data=" in overrides else TINY
    more = {
        "data=textmix": ["data.vocab_size=257"], "data=recall": ["data.length=16"],
        "attention=mamba": ["attention.pattern=[self,softmax]"],
        "attention=fit": ["attention.pattern=[self,softmax]"],
    }  # fmt: skip
    config = composer().config([*base, *chosen, *more.get(overrides, [])])
    train(config, parent=parent)
    run = RunFolder(parent / config.run_name())
    return {name for path in (run.metrics_path, run.timing_path) for row in read_rows(path) for name in row}


@pytest.mark.parametrize("overrides", sorted({*NEEDS, *OTHERS}))
def test_each_recorded_name_has_one_entry(tmp_path, overrides):
    found = recorded(tmp_path, overrides)
    entries = {name: [metric.name for metric in METRICS if metric.matches(name)] for name in found}
    assert {name: of for name, of in entries.items() if len(of) != 1} == {}
    if overrides in NEEDS:
        expected = {metric.name for metric in METRICS if metric.needs in ("", overrides)}
        assert expected - {of[0] for of in entries.values()} == set()


def test_each_name_is_where_and_what():
    assert {m.name for m in METRICS if "/" not in m.name} == {"step", "seconds"}
    assert len({m.name for m in METRICS}) == len(METRICS)
    assert [m.name for m in METRICS if m.of_each and m.reduced_by is None] == []


def test_the_readme_is_that_of_now():
    root = Path(__file__).parents[2]
    assert {path: (root / path).read_text() for path in files()} == files(), "python -m train.docs renews it"
