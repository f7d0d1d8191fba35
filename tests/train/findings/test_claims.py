"""The file of claims: what is refused, what is frozen, whether a sweep is fit, and that no claim passes by itself."""

import datetime
import itertools
from functools import cache

import numpy as np
import pandas as pd
import pytest
import yaml

from conf.axis import ConfigError
from tests.train.findings.frames import bowl, frame
from train.docs.findings import verdicts
from train.findings.arms import arms
from train.findings.base import CLAIMS, Finding, all_findings, find, read_claims
from train.findings.fitness import BIGRAM, NO_MIXING, fitness
from train.findings.quantities import Metric
from train.measure.quantized import ROUNDINGS

ROW = yaml.safe_load(
    """
    claim: A is lower than B.
    source: nobody
    minutes: 1
    paper: {quantity: loss, number: none}
    arms: [a, b]
    primary: {kind: lower, says: it is lower, of: best_loss, arm: a, than: b, by: 0.02, why: noise}
    grid: {models: [mini-w64-d2], lrs: [0.01, 0.03, 0.1]}
    seeds: 3
    contradicted_by: a higher loss
    frozen: null
    figure: {kind: losses}
    """
)
LRS, SEEDS = (0.01, 0.03, 0.1), (0, 1, 2)


def written(tmp_path, **change):
    path = tmp_path / "claims.yaml"
    row = {key: value for key, value in (ROW | change).items() if value != "gone"}
    path.write_text(yaml.safe_dump({"mine": row}))
    return path


def runs_of(a=5.0, b=5.1, floors=(5.8, 5.8), rise=0.1, **more):
    losses = {arm: {n: bowl(LRS, 0.03, best, rise) for n in (1000, 9000)} for arm, best in (("a", a), ("b", b))}
    runs = frame(losses, SEEDS, 0.002)
    return runs.assign(**{BIGRAM: floors[0], NO_MIXING: floors[1]} | more) if floors else runs


def test_a_row_of_yaml_is_a_claim(tmp_path):
    mine = read_claims(written(tmp_path))["mine"]
    assert mine.verdict(runs_of(), {}).state == "reproduced"
    assert mine.verdict(runs_of(a=5.2), {}).state == "contradicted"
    assert mine.verdict(runs_of(b=5.0), {}).state == "not testable at this scale"
    runs = runs_of()
    assert mine.verdict(runs[runs["seed"] < 2], {}).decision == (
        "incomplete",
        "2 seeds a curve where the claim asks for 3",
    )
    found = mine.verdict(runs.assign(ended=runs["seed"] > 0, state="pending"), {})
    assert found.decision == ("incomplete", "12 runs missing")
    assert set(mine.draw(runs, {}, found.headline)) == {"loss_against_lr"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"claim": "gone"}, "mine.claim: Field required"),
        ({"colour": "red"}, "mine.colour: Extra inputs are not permitted"),
        ({"seeds": 0}, "mine.seeds: Input should be greater than or equal to 1"),
        ({"arms": ["a", "c"]}, "arm b is not one of the claim's"),
        ({"arms": list("abcde"), "figure": {"kind": "logits"}}, "logits shows up to 4 arms, there are 5: use losses"),
        ({"arms": {"names": ["a", "b"], "by": "steps"}}, "give one of names, by and where"),
        ({"frozen": "yesterday"}, "mine.frozen: Input should be a valid datetime"),
        ({"primary": ROW["primary"] | {"why": ""}}, "primary.why: give the reason for the threshold"),
        ({"primary": ROW["primary"] | {"of": "best_los"}}, "quantity best_los is not known: did you mean best_loss"),
        ({"primary": ROW["primary"] | {"kind": "lowr"}}, "mine.primary: Input tag 'lowr'"),
        ({"primary": ROW["primary"] | {"factor": 2}}, "give one of by and factor"),
    ],
)
def test_a_bad_claim_is_one_line(tmp_path, change, said):
    with pytest.raises(ConfigError) as fault:
        read_claims(written(tmp_path, **change))
    assert said in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_file_that_is_no_yaml_is_one_line(tmp_path):
    path = tmp_path / "claims.yaml"
    for text in ("a: [1", "- a\n- b\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"^claims\.yaml: .+$"):
            read_claims(path)


def test_runs_are_younger_than_their_claim(tmp_path):
    mine = read_claims(written(tmp_path, frozen=datetime.datetime(2026, 12, 1, 12, 30)))["mine"]
    then = datetime.datetime(2026, 12, 1, 12, 30, tzinfo=datetime.UTC).timestamp()
    assert mine.younger(runs_of(started=then + 1)) is True
    assert mine.younger(runs_of(started=then)) is False
    old = runs_of(started=then + 1)
    old.loc[3, "started"] = then - 1
    assert mine.younger(old) is False
    assert mine.younger(runs_of()) is None
    assert "The claim was frozen on 2026-12-01 at 12:30 UTC; NOT every run started later" in mine.verdict(old, {}).notes
    loose = read_claims(written(tmp_path))["mine"]
    assert loose.younger(old) is None
    assert "The claim is not frozen yet: these runs explore" in loose.verdict(old, {}).notes


def test_verdicts_in_git_are_of_younger_runs():
    for name, found in verdicts().items():
        if found["state"] not in ("incomplete", "not judged", "not run"):
            assert any(note.endswith("every run started later") and "NOT" not in note for note in found["notes"]), name


@pytest.mark.parametrize(
    ("runs", "fault"),
    [
        (runs_of(), None),
        (runs_of(floors=None), "floor/bigram is not in the summaries of the runs"),
        (runs_of(floors=(5.3, 5.3)), "not 0.4 nats below the bigram floor (5.300)"),
        (runs_of(floors=(5.3, 5.8)), "not 0.4 nats below the bigram floor (5.300)"),
        (runs_of(floors=(5.8, 5.2)), "not 0.4 nats below the model without token mixing (5.200)"),
        (runs_of(rise=0.4), "the lowest LR is hardly trained"),
        (runs_of(ended=False, state="pending"), "no complete curve of the baseline, a"),
    ],
)
def test_fitness(tmp_path, runs, fault):
    found = fitness(arms("mine", runs, ["a", "b"]), "a")
    assert found.fit is (fault is None)
    assert str(found).startswith("Fit for judging: " if found.fit else "Not fit for judging: ")
    if fault:
        assert fault in " ".join(found.faults)
        mine = read_claims(written(tmp_path))["mine"]
        assert mine.verdict(runs, {}).state in ("not testable at this scale", "incomplete")
        if "curve" not in fault:
            assert fault in mine.verdict(runs, {}).reason
            free = read_claims(written(tmp_path, needs_fitness=False))["mine"]
            assert free.verdict(runs, {}).state == "reproduced"


def test_an_arm_without_mixing_stands_for_its_floor():
    runs = runs_of(floors=(5.8, np.nan), b=5.5)
    assert fitness(arms("mine", runs, ["a", "b"]), "a", "b").fit
    assert not fitness(arms("mine", runs, ["a", "b"]), "a").fit


def test_without_such_an_arm_the_bigram_floor_is_one_check():
    same, other = (fitness(arms("mine", runs_of(b=5.5, floors=(5.8, of)), ["a", "b"]), "a") for of in (5.8, 5.7))
    assert str(same).startswith(
        "Fit for judging: no arm without token mixing, whose floor is the bigram's: one check, not two; best losses "
        "are 0.80 nats below the bigram floor (5.800) or more; the lowest LR"
    )
    assert len(other.facts) == len(same.facts) == 3
    assert "the model without token mixing (5.700)" in other.facts[1]
    # For data with answers, both are the entropy of an answer.
    assert fitness(arms("mine", runs_of(a=0.01, floors=(4.852, 4.852)), ["a", "b"]), "a").fit
    stuck = fitness(arms("mine", runs_of(a=4.85, floors=(4.852, 4.852)), ["a", "b"]), "a")
    assert len(stuck.faults) == 1
    assert "not 0.4 nats below the bigram floor (4.852)" in stuck.faults[0]


def test_qk_norm_is_first_and_every_claim_says_whether_it_is_frozen():
    assert next(iter(all_findings())) == "qk_norm"
    assert CLAIMS.read_text().count("frozen:") == len(all_findings())


MEASURED = {
    "attention/block0/logit_max": 50.0, "attention/block0/q_norm": 5.0, "attention/block0/k_norm": 5.0,
    "attention/block0/cosine_of_max_pair": 0.5, "attention/entropy": 2.0, "attention/block0/zero_weights": 1e-5,
    "attention/block1/zero_weights": 1e-5, "train/accuracy": 1.0, "validation/accuracy": 0.5,
}  # fmt: skip


@cache
def null(name: str) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """A complete sweep of the claim's arms that differ in nothing but noise."""
    return made(find(name))


def made(finding: Finding, seed: int = 0) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """A complete sweep of the claim's arms that differ in nothing but noise."""
    random, rows, metrics = np.random.default_rng(seed), [], {}
    spec = finding.arms
    lrs = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    names = spec.known or ["x", "y", "z"]
    taken = {
        m.metric
        for check in finding.checks
        for m in [check.of, getattr(check, "than_of", None)]
        if isinstance(m, Metric)
    }
    taken |= {
        name
        for check in finding.checks
        if isinstance(check.of, Metric)
        for name in (check.of.over, check.of.minus)
        if name
    }
    for (i, arm), (size, depth), lr, s in itertools.product(
        enumerate(names), ((1000, 2), (4000, 2), (16000, 2)), lrs, range(3 if finding.seeds == 3 else 5)
    ):
        loss = 5.0 + 0.02 * np.log(lr / 0.03) ** 2 + (lr > 0.2) * 0.5 + 0.001 * random.standard_normal()
        run = f"{arm}-{size}-{lr}-{s}"
        row = {"run": run, "arm": arm, "size": size, "N": size, "optimizer.lr": lr, "seed": s, "steps": 100,
               "model.depth": depth, "validation/loss_final": loss, "validation/loss": loss,
               "validation/loss_init": 8.0, "logit_max": 20 * np.exp(0.05 * random.standard_normal()),
               "state": "finished", "ended": True, "entropy_final": 2.0, BIGRAM: 6.0, NO_MIXING: 6.0}  # fmt: skip
        if spec.column:
            row[spec.column] = arm
        if spec.by:
            row[spec.by] = (0.01, 0.1, 1.0)[i]
        row |= spec.where.get(arm, {})
        for what in finding.measurements:
            losses = {
                name: loss + 0.05 * (name != "fp32") * np.exp(0.005 * random.standard_normal()) for name in ROUNDINGS
            }
            row |= {f"{what}/{name}": value for name, value in losses.items()}
        rows.append(row)
        names_of = sorted({n.replace("*", str(b)) for n in taken | set(MEASURED) for b in (0, 1)})
        values = {n: MEASURED.get(n, 1.0) * np.exp(0.005 * random.standard_normal(40)) for n in names_of}
        values["train/loss"] = loss + 0.01 * random.standard_normal(40)
        metrics[run] = pd.DataFrame({"step": np.arange(40), **values})
    return pd.DataFrame(rows), metrics


NO_CHANGE = {"equal", "no_worse", "stays"}
"""Kinds of claims that arms without a difference fulfil."""


@pytest.mark.parametrize("name", sorted(all_findings()))
def test_negative_control_arms_that_do_not_differ(name):
    finding = find(name)
    runs, metrics = null(name)
    found = finding.verdict(runs, metrics)
    # An arm without mixing that is as good as the others is no floor.
    assert found.fitness
    assert found.fitness.fit is (finding.no_mixing is None), found.fitness
    expected = {"reproduced"} if finding.primary.kind in NO_CHANGE else {"not testable at this scale", "contradicted"}
    assert found.state in expected, found.checks[0].text
    runs, metrics = null(name)
    pending = runs.assign(ended=False, state="pending")
    assert finding.verdict(pending, metrics).state == "incomplete"


@pytest.mark.parametrize("name", sorted(n for n, f in all_findings().items() if f.primary.kind in NO_CHANGE))
def test_negative_control_of_claims_of_no_change(name):
    """The arm that is compared is worse, by 0.5 nats at every LR or by 0.3 at the high ones; metrics go with N."""
    finding = find(name)
    runs, metrics = null(name)
    sweep = finding.sorted(runs, metrics)
    arm = sweep.named(finding.primary.arm)[-1]
    steeper = (runs["arm"] == arm) & (finding.primary.kind != "stays")
    loss = runs["validation/loss"] + steeper * (
        0.5 if finding.primary.of == "best_loss" else 0.3 * (runs["optimizer.lr"] > 0.05)
    )
    runs = runs.assign(**{"validation/loss": loss, "validation/loss_final": loss})
    if isinstance(finding.primary.of, Metric):
        column = finding.primary.of.metric
        sizes = dict(zip(runs["run"], runs["size"], strict=True))
        metrics = {run: rows.assign(**{column: rows[column] * sizes[run] / 1000}) for run, rows in metrics.items()}
    assert finding.verdict(runs, metrics).state in ("contradicted", "partly")


# The first claim of each kind of figure; the others are slow.
KINDS = {finding.figure.kind: name for name, finding in sorted(all_findings().items(), reverse=True)}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in KINDS.values() else pytest.mark.slow) for n in sorted(all_findings())],
)
def test_every_figure_is_drawn(name):
    finding = find(name)
    runs, metrics = null(name)
    figures = finding.draw(runs, metrics, "a title")
    assert figures
    assert all(axes.has_data() for axes in next(iter(figures.values())).axes)


def test_the_sensitivities_of_one_size_stand_arm_by_arm(tmp_path):
    mine = read_claims(written(tmp_path))["mine"]
    runs = runs_of()
    one = runs[runs["size"] == runs["size"].min()]
    found = mine.verdict(one, {})
    (figure,) = mine.draw(one, {}, found.headline).values()
    panel = figure.axes[-1]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["a", "b"]
    assert [float(bar.lines[0].get_xdata()[0]) for bar in panel.containers] == [0, 1]


def test_with_one_lr_there_is_no_panel_of_sensitivities(tmp_path):
    mine = read_claims(written(tmp_path))["mine"]
    runs = runs_of()
    one = runs[runs["optimizer.lr"] == 0.03]
    (figure,) = mine.draw(one, {}, mine.verdict(one, {}).headline).values()
    assert [panel.get_title() for panel in figure.axes] == ["N = 1.0k", "N = 9.0k"]
