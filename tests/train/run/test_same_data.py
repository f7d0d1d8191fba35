"""A run is named by the path of its text; another text there is noticed."""

import re
from contextlib import suppress

import pytest

from conf.axis import ConfigError
from tests.train.helpers import TINY, swept
from tests.train.run.test_resume import StopAt
from train.config.compose import compose
from train.run.extension import plan_of
from train.run.interrupt import Interrupted
from train.run.trainer import train
from train.runfolder.folder import RunFolder

SHORT = ["data=text", "data.vocab_size=257", "context=16", "batch_size=2", "eval_batches=1"]


def write(path, word):
    path.write_text("\n\n".join(f"{word} {i} " * 600 for i in range(30)))


@pytest.fixture
def asked(tmp_path):
    write(tmp_path / "own.txt", "once")
    kept = [o for o in TINY if not o.startswith("data")]
    return [*kept, *SHORT, f"data.path={tmp_path / 'own.txt'}", f"cache={tmp_path / 'cache'}"]


OTHER = r"^data=text: .* was trained on other text than there is now \(text-\w{8}, now text-\w{8}\): give another out="


def test_neither_an_ended_nor_an_interrupted_run_goes_on_with_another_text(tmp_path, asked):
    config = compose(asked)
    with suppress(Interrupted):
        train(config, parent=tmp_path, callbacks=[StopAt(6)])
    run = RunFolder(tmp_path / config.run_name())
    first = run.status()["data"]
    kept = run.checkpoint.read_bytes(), run.metrics_path.read_bytes()
    write(tmp_path / "own.txt", "twice")
    with pytest.raises(ConfigError, match=OTHER):
        train(config, parent=tmp_path)
    assert (run.checkpoint.read_bytes(), run.metrics_path.read_bytes()) == kept

    write(tmp_path / "own.txt", "once")
    train(config, parent=tmp_path)
    assert (run.state(), run.status()["data"], run.status()["attempt"]) == ("finished", first, 2)
    write(tmp_path / "own.txt", "twice")
    with pytest.raises(ConfigError, match=OTHER):
        train(config, parent=tmp_path)
    (tmp_path / "own.txt").unlink()
    assert train(config, parent=tmp_path) == run.summary()  # Its result is the result, whatever became of the text.

    write(tmp_path / "own.txt", "twice")
    train(config, parent=tmp_path, again=True)
    assert run.status()["data"] != first


def test_a_sweep_says_so_before_it_trains(tmp_path, asked):
    grid = [*asked, f"out={tmp_path / 'runs'}", "optimizer.lr=1e-3,1e-2"]
    assert swept(*grid) == 0
    write(tmp_path / "own.txt", "twice")
    with pytest.raises(ConfigError, match=OTHER):
        swept(*grid)


def test_a_longer_run_does_not_go_on_from_one_of_another_text(tmp_path, asked):
    same = [*asked, "schedule=constant", "schedule.warmup_steps=2"]
    first, longer = (compose([*same, f"steps={steps}"]) for steps in (8, 16))
    train(first, parent=tmp_path)
    assert plan_of(longer, tmp_path)[0] is not None
    write(tmp_path / "own.txt", "twice")
    found, why = plan_of(longer, tmp_path)
    assert found is None
    assert re.search(r"can't go on from the 8 steps of .*: they were of other text, text-\w{8}$", why)
