"""`python -m train.findings`, its list, and README's table that is written from the same sweeps."""

from datetime import datetime

import pytest

from conf.axis import ConfigError
from tests.train.test_report import fake_sweep
from train.cli.axes import END, README, replaced
from train.docs.findings import BEGIN, results, table
from train.findings.__main__ import chosen, work
from train.findings.base import all_findings
from train.findings.status import state
from train.report import write_report
from train.results.sweep import load_sweep

pytestmark = pytest.mark.xdist_group("findings_command")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two sweeps: one judged, one of which a run has not ended."""
    parent = tmp_path_factory.mktemp("findings")
    for name, states in (("qk_norm", None), ("gradient_rms", {1: "missing"})):
        (parent / name).mkdir()
        fake_sweep(parent / name, states=states, finding=name)
    write_report(load_sweep(parent / "qk_norm"))
    return parent


def test_groups_and_names():
    assert [f.name for f in chosen(["all"])] == list(all_findings())
    for group in ("core", "rules", "slow"):
        assert [f.name for f in chosen([group])] == [f.name for f in all_findings().values() if f.group == group] != []
    assert "muparam" not in {f.name for f in chosen(["core", "rules"])}
    assert [f.name for f in chosen(["steps", "qk_norm", "steps"])] == ["steps", "qk_norm"]
    with pytest.raises(ConfigError, match="finding=qk_nrom is not known: did you mean qk_norm"):
        chosen(["qk_nrom"])


def test_state(out):
    judged = state(out / "qk_norm")
    assert (judged["state"], judged["ended"], judged["runs"]) == ("reproduced", 30, 30)
    open_ = state(out / "gradient_rms")
    assert (open_["state"], open_["ended"], open_["judged"]) == ("not judged", 29, None)
    assert state(out / "steps") == {}


def test_list(out, capsys):
    assert work([], [f"out={out}"]) == 0
    shown = capsys.readouterr().out
    assert f"1 reproduced, 1 not judged, {len(all_findings()) - 2} not run" in shown


def test_table_and_results(out):
    rows = {line.split("`")[1]: line for line in table(out).splitlines()[2:]}
    assert list(rows) == list(all_findings())
    today = datetime.now().date()
    assert f"| **reproduced**, 4 of 4 | {today} | 25k to 590k | lower at 3 of 3 sizes" in rows["qk_norm"]
    assert "| not judged |" in rows["gradient_rms"]
    assert "| not run |" in rows["steps"]
    text = results(out)
    assert "## qk_norm: reproduced" in text
    assert "![loss and logits against lr](results/qk_norm.png)" in text


def test_readme_has_a_row_for_each_finding():
    text = README.read_text()
    held = text.partition(BEGIN)[2].partition(END)[0]
    assert [line.split("`")[1] for line in held.splitlines()[2:]] == list(all_findings())
    assert replaced(text, BEGIN, END, held) == text
