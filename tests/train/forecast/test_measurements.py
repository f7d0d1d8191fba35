"""The size of a target."""

import pytest

from conf.axis import ConfigError
from tests.conftest import composer
from train.config.grid import compose_all
from train.forecast.measurements import count, parameters_of


def test_a_target_is_a_model_or_a_number():
    config = composer().config(["model=mini-w32-d2", "qk_norm=none"])
    assert parameters_of(config, "mini-w128-d2") == 393_856, "as trained: 12 depth width^2 and the norms"
    assert parameters_of(config, "1.8M") == pytest.approx(1.8e6)
    assert parameters_of(config, "2e9") == 2e9
    assert parameters_of(config, "250k") == 250e3
    with pytest.raises(ConfigError, match=r"--target mini-w96 is neither .* did you mean mini-w96-d7\?"):
        parameters_of(config, "mini-w96")


def test_a_targets_size_is_that_of_its_architecture():
    """SwiGLU has three matrices in place of two, of 8/3 the width in place of four."""
    plain, gated = compose_all([["mlp=gelu", "qk_norm=none"], ["mlp=swiglu", "qk_norm=none"]])
    shared = 4 * 128**2 * 2 + 128 * 5
    assert count(plain, "mini-w128-d2") == shared + 2 * 2 * 128 * 512
    assert count(gated, "mini-w128-d2") == shared + 2 * 3 * 128 * 341
