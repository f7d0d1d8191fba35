"""Signs of trouble: thresholds on rows that are written by hand, and their actions on real runs."""

import json
import math

import pytest

from tests.train.helpers import assert_same_end, tiny, trained
from train.config.watch import Watch
from train.run.interrupt import Stopped
from train.run.trainer import train
from train.run.watch import Watcher
from train.runfolder.folder import RunFolder


def rows(losses, **probes):
    return [{"step": i, "train/loss": loss, **probes} for i, loss in enumerate(losses)]


def steps(watch, *given):
    watcher = Watcher(watch)
    return {alarm.sign: alarm.step for part in given for alarm, _ in watcher.check(part)}


def noise(i):
    """Deterministic, with mean 0 and standard deviation 1."""
    return math.sqrt(2) * math.sin(2.4 * i)


def test_each_probe_has_its_threshold():
    sound = {"attention/logit_max": 9e3, "attention/entropy": 2.0, "adam/head/gradient_over_eps": 1.1,
             "output/log_z_squared": 999.0}  # fmt: skip
    assert steps(Watch(), rows([3.0], **sound)) == {}
    for name, bad, sign in (
        ("attention/logit_max", 1.1e4, "logits"), ("attention/entropy", 0.0039, "entropy"),
        ("adam/head/gradient_over_eps", 0.9, "gradient"), ("output/log_z_squared", 1001.0, "log_z"),
    ):  # fmt: skip
        first, second = rows([3.0, 3.0], **sound)
        assert steps(Watch(), [first], [second | {name: bad}]) == {sign: 1}
        assert steps(Watch(warn=()), [first], [second | {name: bad}]) == {}


def test_a_gradient_sinks_only_from_above():
    dead = rows([3.0] * 3, **{"adam/key.bias/gradient_over_eps": 0.01, "adam/head/gradient_over_eps": 2.0})
    watcher = Watcher(Watch())
    assert watcher.check(dead) == []
    ((alarm, _),) = watcher.check([dead[2] | {"adam/head/gradient_over_eps": 0.5}])
    assert (alarm.tensor, alarm.value) == ("head", 0.5)
    assert alarm.text() == "step 2: gradient RMS of head sank to 0.5 times epsilon, below 1"


def test_large_logits_are_no_sign_where_weights_do_not_saturate(tmp_path, capsys):
    trained(tmp_path, "attention=taylor", "watch.logit_max=1e-6")
    assert "logit" not in capsys.readouterr().err
    trained(tmp_path / "some", "attention=taylor", "attention.pattern=odd", "watch.logit_max=1e-6")
    assert "largest attention logit" in capsys.readouterr().err


def test_a_spike_is_four_outliers_of_eight():
    sound = [3 + 0.1 * noise(i) for i in range(200)]
    assert steps(Watch(), rows(sound)) == {}
    single = [*sound[:150], 4.0, *sound[151:]]
    assert steps(Watch(), rows(single)) == {}
    spike = [*sound[:150], *[3.61 + 0.001 * i for i in range(4)], *sound[154:]]
    assert steps(Watch(), rows(spike)) == {"spike": 153}
    assert steps(Watch(sigmas=7), rows(spike)) == {}
    early = [*sound[:100], *[9.0] * 4, *sound[104:]]
    assert steps(Watch(), rows(early)) == {}


def test_a_warning_is_a_line_and_a_row_and_changes_no_number(tmp_path, capsys):
    plain = trained(tmp_path / "plain", "watch.warn=[]")
    warned = trained(tmp_path / "warned", "watch.logit_max=1e-6", "watch.checkpoint=true")
    assert_same_end(warned, plain)
    (row,) = map(json.loads, warned.warnings_path.read_text().splitlines())
    assert (row["sign"], row["step"], row["threshold"]) == ("logits", 0, 1e-6)
    assert row["value"] == row["attention/logit_max"] == warned.metrics()[1]["attention/logit_max"]
    assert capsys.readouterr().err.count("warning: step 0: largest attention logit") == 1
    assert (warned.path / "warning-logits.ckpt").exists()
    assert not plain.warnings_path.exists()


def test_a_stopped_run_says_why_and_goes_on_without_the_threshold(tmp_path):
    words = ["watch.logit_max=1e-6", "watch.stop=[logits]"]
    for _ in range(2):
        with pytest.raises(Stopped, match="step 0: largest attention logit"):
            trained(tmp_path, *words)
    folder = RunFolder(tmp_path / tiny().run_name())
    assert folder.state() == "stopped"
    assert folder.status()["reason"].startswith("watch.stop: step 0: largest")
    assert not folder.summary()
    train(tiny(), parent=tmp_path)
    assert_same_end(folder, trained(tmp_path / "whole"))
