import math

import pytest
import torch

from conf.axis import ConfigError
from tests.train.helpers import tiny, trained
from train.measure.entropy_bound import bound, measure, measure_run
from train.run.module import ProxyModule


def least(norm, keys):
    return float(bound(torch.tensor(float(norm)), torch.tensor(keys)))


def entropy(z):
    return float(torch.special.entr(torch.softmax(z.double(), -1)).sum())


@pytest.mark.parametrize(("norm", "keys", "value"), [(1, 4, 1.226659), (3, 4, 0.387119), (10, 16, 0.0055548)])
def test_reference_values_are_attained(norm, keys, value):
    assert least(norm, keys) == pytest.approx(value, rel=1e-5)
    top, rest = norm * math.sqrt((keys - 1) / keys), -norm / math.sqrt(keys * (keys - 1))
    assert entropy(torch.tensor([top] + [rest] * (keys - 1))) == pytest.approx(value, rel=1e-5)


def test_limits():
    assert least(0, 8) == pytest.approx(math.log(8))
    assert least(1e4, 8) == 0
    assert least(5, 1) == 0


def test_random_logits_are_never_below():
    generator = torch.Generator().manual_seed(0)
    for keys in (2, 3, 16):
        z = torch.randn(2000, keys, generator=generator).double() * torch.rand(2000, 1, generator=generator) * 6
        found = torch.special.entr(torch.softmax(z, -1)).sum(-1)
        assert (found >= bound(z.norm(dim=-1), torch.tensor(keys)) - 1e-9).all()


def test_a_models_entropy_is_that_of_its_probe_and_above_both_bounds():
    config = tiny("qk_norm=none")
    model = ProxyModule(config).model.eval()
    tokens = torch.randint(0, 64, (4, config.context), generator=torch.Generator().manual_seed(1))
    blocks = measure(model, tokens)
    _, stats = model.hidden(tokens, True)
    assert [one.block for one in blocks] == [0, 1]
    for one in blocks:
        # The probe's mean includes the first row, whose entropy is 0.
        probe = float(stats[f"attention/block{one.block}/entropy"].mean())
        assert one.entropy * (config.context - 1) / config.context == pytest.approx(probe, rel=1e-5)
        assert one.below == 0
        assert one.at_theorem <= one.at_row_norm <= one.entropy
    query, key = (proj.weight.detach()[:8] for proj in (model.blocks[0].attention.query, model.blocks[0].attention.key))
    of_head = float(torch.linalg.matrix_norm(query, 2) * torch.linalg.matrix_norm(key, 2)) / math.sqrt(8)
    assert blocks[0].spectral_norm >= of_head * (1 - 1e-5)


def test_runs_it_can_and_cannot_measure(tmp_path):
    run = trained(tmp_path, "qk_norm=none")
    assert [one.below for one in measure_run(run.path)] == [0, 0]
    with pytest.raises(ConfigError, match=r"no weights\.pt"):
        measure_run(tmp_path)
    normed = trained(tmp_path, "qk_norm=layernorm")
    with pytest.raises(ConfigError, match="qk_norm=layernorm"):
        measure_run(normed.path)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("given", [("position=alibi",), ("parametrization=u_mup",)])
def test_the_theorem_s_bound_holds_with_biases_and_multipliers(given, size):
    """At queries of any size: those of zero leave the logits to the position bias alone."""
    config = tiny("qk_norm=none", *given)
    model = ProxyModule(config).model.eval()
    for mixer in model.mixers():
        mixer.query.weight.data *= size
    tokens = torch.randint(0, 64, (4, config.context), generator=torch.Generator().manual_seed(1))
    for one in measure(model, tokens):
        assert one.below == 0
        assert one.at_theorem <= one.at_row_norm + 1e-9 <= one.entropy + 2e-9


def test_spectral_norms_include_multipliers():
    """Scaling weights by 16 and their multipliers by 1/16 leaves logits and norms as they are."""
    tokens = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(1))
    found = []
    for factor in (1.0, 16.0):
        model = ProxyModule(tiny("qk_norm=none")).model.eval()
        for mixer in model.mixers():
            mixer.query.weight.data *= factor
            mixer.query.multiplier /= factor
        found.append(measure(model, tokens)[0])
    assert found[1].spectral_norm == pytest.approx(found[0].spectral_norm, rel=1e-6)
    assert found[1].at_theorem == pytest.approx(found[0].at_theorem, rel=1e-5)


def test_norms_of_queries_and_keys_are_refused(tmp_path):
    run = trained(tmp_path, "qk_norm=none", "steps=1", "placement=ngpt", "norm=none")
    with pytest.raises(ConfigError, match="placement=ngpt norms or scales them"):
        measure_run(run.path)
