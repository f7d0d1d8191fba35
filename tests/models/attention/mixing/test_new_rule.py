"""The examples of the pages, done in a copy of the tree: a rule in ten minutes, and README's ablation."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.attention.mixing.helpers import RULES

ROOT = Path(__file__).parents[4]
RULE = "tempered"
ABLATION = "conf/experiment/caps.yaml"
# In one process, since most of the time goes into imports: the rule's tests, a run, the bench, the pages, the ablation.
DRIVER = """
import json, sys
from pathlib import Path
import pytest

class Passed:
    names = []
    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.names.append(report.nodeid)

from train.docs.__main__ import docs
rule, out = sys.argv[1], Path(sys.argv[2])
docs(check=False, results=None)
files = [f"tests/models/attention/mixing/test_{rule}.py", "tests/models/attention/mixing/test_rules.py",
         "tests/train/config/test_knobs.py", "tests/train/docs/test_docs.py"]
options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-k", rule]
code = pytest.main([*files, *options], plugins=[Passed()])
from tests.train.helpers import trained
row = trained(out, f"attention={rule}").metrics()[1]
sys.argv = ["bench", "--attention", rule, "--models", "mini-w128-d2", "--steps", "1", "--rounds", "1"]
sys.argv += ["--out", str(out / "bench.json")]
from train.bench.__main__ import main
main()
(cost,) = json.loads((out / "bench.json").read_text())["mini-w128-d2"]["rules"]
data = Path("train/bench/attention.json")
rows = json.loads(data.read_text())
rows["mini-w128-d2"]["rules"].append(cost)
data.write_text(json.dumps(rows))
docs(check=False, results=None)
from train.sweeps.plan import plan
arms = plan(["experiment=caps"]).arms
(out / "found.json").write_text(json.dumps({"code": code, "passed": Passed.names, "row": row, "arms": arms}))
"""


def files_of_example() -> dict[str, str]:
    """The files of models/README.md's example by path: the rule and its tests."""
    section = (ROOT / "models/README.md").read_text().partition("\n## A rule in ten minutes\n")[2]
    return dict(re.findall(r"^`([\w/.]+)` .*?```\w+\n(.*?)^```", section, re.MULTILINE | re.DOTALL))


@pytest.mark.slow
def test_a_rule_of_two_files_is_picked_up_everywhere(tmp_path: Path) -> None:
    assert RULE not in RULES
    copy, files = tmp_path / "copy", files_of_example()
    folders = [Path(name).parent.as_posix() for name in files]
    assert folders == ["models/attention/mixing", "tests/models/attention/mixing"]
    for folder in ("conf", "data", "models", "slurm", "tests", "train"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    readme = (ROOT / "README.md").read_text()
    (ablation,) = re.findall(rf"^Save this as `{ABLATION}`:\n\n```yaml\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(ablation.splitlines()) <= 15
    for name, text in {**files, ABLATION: ablation}.items():
        (copy / name).write_text(text)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"PYTHONPATH": str(copy)}
    command = [sys.executable, "-c", DRIVER, RULE, str(tmp_path)]
    ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["code"] == 0, ran.stdout
    tests = {re.sub(r"\[.*", "", name).rpartition("::")[2] for name in found["passed"]}
    assert tests >= {
        "test_a_row", "test_a_prefix_gives_the_same_outputs", "test_gradients_of_both_paths_agree", "test_field",
        "test_parameter_count", "test_probes_have_one_value_a_head", "test_every_choice_is_documented",
        "test_many_weights_are_made_for_one_sequence_at_once",
    }  # fmt: skip
    assert len(found["passed"]) > 40
    assert {f"attention/block0/{name}" for name in ("entropy", "support", "sink_rate_by_head")} <= found["row"].keys()
    models, bench = ((copy / name / "README.md").read_text() for name in ("models", "train/bench"))
    assert "| `tempered` | softmax_j\\<=i((scale q_i k_j + bias) / temperature) | Hinton, Vinyals & Dean 2015" in models
    assert re.search(r"^\| `tempered` \|( \**\d+\.\d\d\** \|){6} T\^-?\d\.\d\d \|$", bench, re.MULTILINE)
    assert {arm: found["arms"].count(arm) for arm in found["arms"]} == {"baseline": 16, "soft-cap": 16, "qk-norm": 16}
