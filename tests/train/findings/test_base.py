import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from conf.axis import ConfigError
from train.findings.base import all_findings, find
from train.findings.claims import qk_norm
from train.results.verdict import Check, Verdict

LRS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SIZES = (24_576, 98_304, 589_824)
NONE = {
    24_576: [(5.885, 7.6), (5.2945, 11), (5.224, 39), (5.558, 3469), (6.443, 2e5)],
    98_304: [(5.570, 9.5), (5.170, 20), (5.378, 212), (6.116, 25742), (6.372, 4e5)],
    589_824: [(5.25, 20), (5.156, 165), (5.536, 1820), (6.170, 48590), (6.35, 1e6)],
}
NORM = {
    24_576: [(5.906, 5), (5.297, 7.5), (5.233, 13), (5.276, 14), (5.375, 76)],
    98_304: [(5.564, 6), (5.138, 8.6), (5.216, 13), (5.367, 19.5), (5.460, 32)],
    589_824: [(5.2, 7), (5.09, 9), (5.15, 15), (5.3, 22), (5.4, 41)],
}


def judge(runs):
    return qk_norm.judge(runs, {})


def frame(none=NONE, norm=NORM, seeds=(0,), noise=0.0, norm_name="layernorm"):
    random, rows = np.random.default_rng(0), []
    for arm, curves in (("none", none), (norm_name, norm)):
        for n, points in curves.items():
            for lr, (loss, logit) in zip(LRS, points, strict=True):
                for seed in seeds:
                    final = None if loss is None else loss + noise * random.standard_normal()
                    rows.append(
                        {"run": f"{n}-{arm}-{lr}-{seed}", "size": n, "N": n, "qk_norm.name": arm, "optimizer.lr": lr,
                         "seed": seed, "validation/loss_final": final,
                         "validation/loss": 8.1 if loss is None else final, "validation/loss_init": 8.1,
                         "logit_max": logit, "state": "diverged" if loss is None else "finished", "ended": True}
                    )  # fmt: skip
    return pd.DataFrame(rows).astype({"validation/loss_final": float})


def passed(verdict):
    return [check.passed for check in verdict.checks]


def without(runs, **of):
    keep = np.logical_and.reduce([runs[name.replace("__", ".")] == value for name, value in of.items()])
    return runs.assign(state=np.where(keep, "failed", runs["state"]), ended=~keep & runs["ended"])


def test_reproduced_with_hand_computed_numbers():
    verdict = judge(frame())
    assert verdict.state == "reproduced"
    lower, falling, logits, same = (check.numbers for check in verdict.checks)
    # 28.4045 / 5 - 5.224 and 27.087 / 5 - 5.233
    assert lower["sizes"][0]["without"] == pytest.approx(0.4569)
    assert lower["sizes"][0]["with"] == pytest.approx(0.1844)
    assert lower["sizes"][0]["ratio"] == pytest.approx(0.4569 / 0.1844)
    # Crossings of best + 0.1: 0.334 nats over the step 3e-2 ... 1e-1; 0.208 and 0.38 over 1e-2 ... 3e-2.
    expected = [3e-2 * (10 / 3) ** (0.1 / 0.334), 1e-2 * 3 ** (0.1 / 0.208), 1e-2 * 3 ** (0.1 / 0.38)]
    assert [s["critical_lr"] for s in falling["sizes"]] == pytest.approx(expected)
    assert [s["first_degraded_lr"] for s in falling["sizes"]] == pytest.approx([1e-1, 3e-2, 3e-2])
    assert falling["fall"] == pytest.approx(expected[0] / expected[2])
    table = logits["without"]
    assert (table["above_degraded"], table["above_not_degraded"], table["below_degraded"]) == (7, 0, 1)
    assert table["below_not_degraded"] == 7
    assert (table["diverging"], table["diverging_degraded"]) == (5, 5)
    assert (table["least_logit_degraded"], table["largest_logit_not_degraded"]) == (212, 165)
    assert logits["with"]["above"] == 0
    # Half the critical LRs are 2.1e-2, 8.5e-3 and 6.7e-3: four pairs, the worst 5.25 against 5.2.
    assert same["pairs"] == 4
    assert same["largest"]["difference"] == pytest.approx(0.05)
    assert same["largest_up_to_critical"] == pytest.approx(0.066)


def test_notes_name_the_grid_and_how_it_differs_from_the_papers():
    notes = "\n".join(judge(frame()).notes)
    assert "LR grid: 0.003, 0.01, 0.03, 0.1, 0.3" in notes
    assert "The paper's LR grid is 7 from 0.0003 to 0.3" in notes
    assert "Seeds a curve: 1; no spread is known" in notes
    assert "best LR" not in notes
    edge = {n: sorted(points) for n, points in NORM.items()}
    assert "N=25k layernorm: the best LR, 0.003, is at the grid's edge" in judge(frame(norm=edge)).notes


@pytest.mark.parametrize("arm", [NONE, NORM])
@pytest.mark.parametrize(("seeds", "noise"), [((0,), 0.0), ((0,), 0.02), ((0, 1, 2), 0.02)])
def test_negative_control_identical_arms(arm, seeds, noise):
    verdict = judge(frame(none=arm, norm=arm, seeds=seeds, noise=noise))
    assert verdict.state == "not reproduced"
    assert verdict.checks[0].passed is False


def test_only_sensitivity_fails():
    same_at_one_size = NORM | {98_304: [(loss, 10) for loss, _ in NONE[98_304]]}
    verdict = judge(frame(norm=same_at_one_size))
    assert passed(verdict) == [False, True, True, True]
    assert verdict.state == "not reproduced"
    assert "lower at 2 of 3 sizes" in verdict.checks[0].text


def test_only_the_fall_of_the_critical_lr_fails():
    flat = judge(frame(none=dict.fromkeys(SIZES, NONE[24_576]), norm=dict.fromkeys(SIZES, NORM[24_576])))
    assert passed(flat) == [True, False, True, True]
    assert flat.checks[1].numbers["fall"] == pytest.approx(1)
    rising = judge(
        frame(
            none=dict(zip(SIZES, reversed(NONE.values()), strict=True)),
            norm=dict(zip(SIZES, reversed(NORM.values()), strict=True)),
        )
    )
    assert passed(rising) == [True, False, True, True]


def test_a_rise_in_the_middle_fails_though_the_ends_fall():
    order = (NONE[98_304], NONE[24_576], NONE[589_824])
    norms = (NORM[98_304], NORM[24_576], NORM[589_824])
    verdict = judge(frame(dict(zip(SIZES, order, strict=True)), dict(zip(SIZES, norms, strict=True))))
    assert verdict.checks[1].numbers["fall"] > 1.25
    assert verdict.checks[1].passed is False


def test_a_size_that_never_degrades_counts_as_beyond_the_grid():
    stable = [(5.906, 5), (5.297, 7.5), (5.233, 13), (5.276, 14), (5.3, 76)]
    small = judge(frame(none=NONE | {24_576: stable}, norm=NORM | {24_576: stable})).checks[1]
    assert small.passed is True
    assert small.numbers["fall"] == pytest.approx(0.3 / (1e-2 * 3 ** (0.1 / 0.38)))
    assert "N=25k > 0.3" in small.text
    assert judge(frame(none=NONE | {589_824: stable}, norm=NORM | {589_824: stable})).checks[1].passed is False


@pytest.mark.parametrize(
    ("change", "table"),
    [
        # Breaks without large logits; a good run with large logits; most broken runs without them.
        (lambda lr, logit: logit / 1e4, (0, 0)),
        (lambda lr, logit: logit if lr != 3e-3 else 2e3, (7, 3)),
        (lambda lr, logit: logit if lr == 3e-1 else 10.0, (3, 0)),
    ],
)
def test_only_the_logits_fail(change, table):
    none = {n: [(x, change(lr, z)) for lr, (x, z) in zip(LRS, points, strict=True)] for n, points in NONE.items()}
    verdict = judge(frame(none=none))
    assert passed(verdict) == [True, True, False, True]
    counts = verdict.checks[2].numbers["without"]
    assert (counts["above_degraded"], counts["above_not_degraded"]) == table


def test_only_agreement_below_the_critical_lr_fails():
    shifted = NORM | {98_304: [(loss + 0.2, logit) for loss, logit in NORM[98_304]]}
    verdict = judge(frame(norm=shifted))
    assert passed(verdict) == [True, True, True, False]
    assert verdict.checks[3].numbers["largest"]["difference"] == pytest.approx(0.194)


def test_nothing_breaks_decides_nothing_about_breaking():
    calm = {n: [(5.3, 5), (5.2, 6), (5.15, 7), (5.1, 8), (5.11, 9)] for n in SIZES}
    verdict = judge(frame(none=calm, norm=calm))
    assert passed(verdict) == [False, None, None, True]


def test_missing_runs_leave_open_what_needs_them():
    runs = without(frame(), size=98_304, qk_norm__name="layernorm", optimizer__lr=1e-2)
    verdict = judge(runs)
    assert passed(verdict) == [None, True, True, None]
    assert verdict.state == "inconclusive"
    assert "Missing: N=98k layernorm lr=0.01 seed=0 (failed)" in verdict.notes
    assert verdict.checks[0].text.startswith("1 run missing; so far: lower at 2 of 2 sizes")
    assert passed(judge(without(frame(), size=24_576))) == [None] * 4


def test_arms_are_compared_over_the_lrs_that_they_share():
    verdict = judge(frame().iloc[:-1])
    assert "LR grid: 0.003, 0.01, 0.03, 0.1 (layernorm)" in verdict.notes
    largest = verdict.checks[0].numbers["sizes"][-1]
    # 22.112 / 4 - 5.156 and 20.74 / 4 - 5.09
    assert largest["without"] == pytest.approx(0.372)
    assert largest["with"] == pytest.approx(0.095)


def test_no_run_ended():
    assert judge(frame().assign(ended=False, state="pending")).state == "inconclusive"


def test_a_failed_check_outweighs_missing_runs():
    runs = frame(none=dict.fromkeys(SIZES, NONE[24_576]))
    verdict = judge(without(runs, size=98_304, qk_norm__name="layernorm"))
    assert verdict.checks[1].passed is False
    assert verdict.state == "not reproduced"


def test_seeds_and_their_spread():
    none = {n: [*points[:4], (points[4][0], points[4][1])] for n, points in NONE.items()}
    runs = frame(none=none, seeds=(0, 1))
    # The last LR of seed 1 is a nat higher: sensitivity + 0.2, sample standard deviation 0.2 / sqrt(2).
    last = (runs["seed"] == 1) & (runs["optimizer.lr"] == 3e-1) & (runs["qk_norm.name"] == "none")
    verdict = judge(runs.assign(**{"validation/loss_final": runs["validation/loss_final"] + last}))
    size = verdict.checks[0].numbers["sizes"][0]
    assert size["without"] == pytest.approx(0.4569 + 0.1)
    assert size["std_without"] == pytest.approx(0.2 / 2**0.5)
    # Two standard errors: 2 * 0.2 / sqrt(2) / sqrt(2)
    assert size["needed_difference"] == pytest.approx(0.2)
    assert verdict.state == "reproduced"


def test_a_difference_within_two_standard_errors_fails():
    runs = frame(seeds=(0, 1))
    wild = (runs["seed"] == 1) & (runs["optimizer.lr"] == 3e-1) & (runs["qk_norm.name"] == "layernorm")
    verdict = judge(runs.assign(**{"validation/loss_final": runs["validation/loss_final"] + 1.5 * wild}))
    assert verdict.checks[0].passed is False


def test_a_run_that_went_to_nan_at_once_counts_as_large_logits():
    none = NONE | {589_824: [*NONE[589_824][:4], (None, np.nan)]}
    verdict = judge(frame(none=none))
    assert verdict.checks[2].passed is True
    assert verdict.checks[2].numbers["without"]["above_degraded"] == 7
    assert verdict.checks[1].numbers["sizes"][2]["first_diverging_lr"] == pytest.approx(0.3)


def test_another_norm_stands_in_and_is_named():
    assert (
        "The arm with qk-norm is qk_norm=rmsnorm; the paper's is layernorm" in judge(frame(norm_name="rmsnorm")).notes
    )


def test_sweeps_that_it_cannot_judge():
    with pytest.raises(ConfigError, match="this sweep has none"):
        judge(frame().query("`qk_norm.name` == 'none'"))
    with pytest.raises(ConfigError, match="varies more"):
        judge(pd.concat([frame(), frame()]))


def test_verdict_states():
    def of(*results):
        return Verdict("f", [Check("c", result, {}, "") for result in results]).state

    assert of(True, True) == "reproduced"
    assert of(True, None) == of() == "inconclusive"
    assert of(True, None, False) == "not reproduced"


def test_to_json_is_plain():
    check = Check("c", True, {"a": np.float64(1.5), "b": float("inf"), "c": (1, None), "d": np.bool_(True)}, "t")
    text = json.dumps(Verdict("f", [check], ["n"]).to_json(), allow_nan=False)
    assert json.loads(text)["checks"][0]["numbers"] == {"a": 1.5, "b": None, "c": [1, None], "d": True}
    json.dumps(judge(frame()).to_json(), allow_nan=False)


def test_registry():
    assert find("qk_norm") is all_findings()["qk_norm"]
    with pytest.raises(ConfigError, match="finding=qk_nrom is not known: did you mean qk_norm"):
        find("qk_nrom")


def test_importing_findings_loads_neither_pandas_nor_matplotlib():
    code = "import sys, train.findings; print({'pandas', 'matplotlib'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
