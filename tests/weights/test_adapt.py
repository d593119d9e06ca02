"""Adapting weights, compared with timm and with values computed by hand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from support.reference import import_timm

from jaxvision.errors import UserError
from jaxvision.weights import adapt


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.timm
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("old", "new"), [(14, 24), (24, 14), (14, 2), (14, 1), (1, 14), (7, 12), (12, 7), (3, 2), (37, 16)]
)
def test_position_grid_matches_timm(old, new, prefix):
    import_timm()
    import torch
    from timm.layers import resample_abs_pos_embed

    pos_embed = noise(1, prefix + old * old, 24)
    expected = resample_abs_pos_embed(torch.tensor(pos_embed), [new, new], num_prefix_tokens=prefix).numpy()
    got = adapt.position_grid(pos_embed, prefix + new * new, prefix=prefix)
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6)
    np.testing.assert_array_equal(got[:, :prefix], pos_embed[:, :prefix])


def test_an_unchanged_grid_returns_the_same_array():
    pos_embed = noise(1, 5, 8)
    assert adapt.position_grid(pos_embed, 5, prefix=1) is pos_embed


def test_a_constant_grid_stays_constant():
    pos_embed = np.full((1, 1 + 49, 3), 2.5, np.float32)
    np.testing.assert_allclose(adapt.position_grid(pos_embed, 1 + 25, prefix=1), 2.5, rtol=1e-6)


def test_position_grid_keeps_the_dtype():
    pos_embed = noise(1, 5, 8).astype(ml_dtypes.bfloat16)
    assert adapt.position_grid(pos_embed, 10, prefix=1).dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(("tokens", "wanted"), [(1 + 6, 1 + 9), (1 + 9, 1 + 8), (1 + 9, 0)])
def test_a_grid_that_is_not_square_is_an_error(tokens, wanted):
    with pytest.raises(UserError, match="are not a square grid"):
        adapt.position_grid(noise(1, tokens, 4), wanted, prefix=1)


@pytest.mark.timm
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 12])
@pytest.mark.parametrize("old", [3, 4])
def test_input_channels_match_timm(old, channels):
    import_timm()
    import torch
    from timm.models import adapt_input_conv

    weight = noise(5, old, 3, 3)
    expected = adapt_input_conv(channels, torch.tensor(weight), base_chans=old).numpy()
    np.testing.assert_allclose(adapt.input_channels(weight, channels), expected, rtol=1e-6, atol=1e-6)


def test_input_channels_by_hand():
    weight = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1) + 1  # 1 2 3
    assert adapt.input_channels(weight, 1).ravel().tolist() == [6]
    assert adapt.input_channels(weight, 2).ravel().tolist() == [1.5, 3]
    np.testing.assert_allclose(adapt.input_channels(weight, 4).ravel(), [0.75, 1.5, 2.25, 0.75])
    assert adapt.input_channels(weight, 3) is weight


def test_half_precision_weights_are_summed_in_float32():
    weight = np.asarray([2048, 1, 1], np.float16).reshape(1, 3, 1, 1)  # in float16, 2048 + 1 is 2048
    assert adapt.input_channels(weight, 1).item() == 2050
