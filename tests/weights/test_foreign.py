"""Weight files with the names of other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxvision.weights import files

#: Some tensors of efficientnet-pytorch's `efficientnet-b1`: its name, timm's name, number of output channels.
EFFICIENTNET_PYTORCH = [
    ("_conv_stem.weight", "conv_stem.weight", 32),
    ("_bn0.running_var", "bn1.running_var", 32),
    ("_blocks.0._depthwise_conv.weight", "blocks.0.0.conv_dw.weight", 32),
    ("_blocks.0._bn1.weight", "blocks.0.0.bn1.weight", 32),
    ("_blocks.0._se_reduce.bias", "blocks.0.0.se.conv_reduce.bias", 8),
    ("_blocks.0._se_expand.weight", "blocks.0.0.se.conv_expand.weight", 32),
    ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight", 16),
    ("_blocks.0._bn2.bias", "blocks.0.0.bn2.bias", 16),
    ("_blocks.1._project_conv.weight", "blocks.0.1.conv_pw.weight", 16),
    ("_blocks.2._expand_conv.weight", "blocks.1.0.conv_pw.weight", 96),
    ("_blocks.2._bn0.num_batches_tracked", "blocks.1.0.bn1.num_batches_tracked", 1),
    ("_blocks.2._depthwise_conv.weight", "blocks.1.0.conv_dw.weight", 96),
    ("_blocks.2._bn1.running_mean", "blocks.1.0.bn2.running_mean", 96),
    ("_blocks.2._project_conv.weight", "blocks.1.0.conv_pwl.weight", 24),
    ("_blocks.2._bn2.weight", "blocks.1.0.bn3.weight", 24),
    ("_conv_head.weight", "conv_head.weight", 1280),
    ("_bn1.bias", "bn2.bias", 1280),
    ("_fc.bias", "classifier.bias", 1000),
]


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
def test_the_names_of_efficientnet_pytorch(prefix, tmp_path):
    tensors = {prefix + theirs: np.full(n, i, np.float32) for i, (theirs, _, n) in enumerate(EFFICIENTNET_PYTORCH)}
    save_file({**tensors, "criterion.weight": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    file = files.open_weights(tmp_path / "model.safetensors")
    values = {timms: np.full(n, i, np.float32) for i, (_, timms, n) in enumerate(EFFICIENTNET_PYTORCH)}
    assert file.shapes.keys() - {"criterion.weight"} == values.keys()
    for name, value in values.items():
        assert file.shapes[name] == value.shape
        np.testing.assert_array_equal(file.tensor(name), value, err_msg=name)


def test_two_names_of_one_tensor(tmp_path):
    tensors = {theirs: np.ones(n, np.float32) for theirs, _, n in EFFICIENTNET_PYTORCH}
    save_file({**tensors, "classifier.bias": np.ones(1000, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"got '(_fc|classifier).bias' and .* which are both timm's 'classifier.bias'"):
        files.open_weights(tmp_path / "model.safetensors")
