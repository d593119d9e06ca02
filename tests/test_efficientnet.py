"""What is special to EfficientNets, against real timm with the same weights. What all share: test_contract.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from against_timm import assert_close, assert_gradients_close, fill, images, pair, random_model, randomised
from flax import nnx
from reference import import_timm

from jaxvision import tree
from jaxvision.models import registry
from jaxvision.models.efficientnet import B_STAGES, BLOCKS, EfficientNet, Stage
from jaxvision.models.layers.mode import train_view
from jaxvision.weights.timm import timm_name


def channels_last(tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


TF = {"pad_type": "same", "bn_eps": 1e-3, "act_layer": "relu6"}  # as timm calls it
OURS = {"padding": "same", "epsilon": 1e-3, "activation": "relu6"}


# Odd sides show PyTorch's padding, even ones TensorFlow's. Logits of the full nets are in test_golden.py.
@pytest.mark.timm
@pytest.mark.parametrize(("size", "tf"), [(47, False), (64, True), (75, True)])
def test_every_feature_map_and_the_logits_are_timms(size, tf):
    theirs = randomised(import_timm().create_model("test_efficientnet", **(TF if tf else {})).eval())
    ours = fill(registry.build_abstract("test_efficientnet", **(OURS if tf else {})), theirs.state_dict())
    tensor, array = images(2, size, size, 3)

    @jax.jit
    def forward(model, x):
        features = model.forward_features(x)
        return model.forward_intermediates(x), features, model.forward_head(features)

    maps, features, logits = forward(ours, array)
    last, wanted = theirs.forward_intermediates(tensor)
    assert len(maps) == len(wanted) == 5
    for a, b in zip(maps, wanted, strict=True):
        assert_close(a, channels_last(b))
    assert_close(features, channels_last(last))
    assert_close(logits, theirs(tensor).detach())


@pytest.mark.timm
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", ["test_efficientnet", "efficientnet_b0"])
def test_layer_groups_are_timms(name, coarse):
    timm = import_timm()
    import torch
    from timm.models import group_parameters

    with torch.device("meta"):
        theirs = timm.create_model(name)
    wanted = group_parameters(theirs, theirs.group_matcher(coarse=coarse), reverse=True)
    ours = registry.build_abstract(name)
    names = tree.names(nnx.state(ours, nnx.Param))
    patterns = ours.layer_groups(coarse=coarse)
    got = tree.match(names, [(pattern, i) for i, pattern in enumerate(patterns)], default=len(patterns))
    assert {timm_name(n): group for n, group in got.items()} == wanted


@pytest.mark.timm
def test_a_training_step_has_timms_gradients():
    theirs, ours = pair("test_efficientnet", num_classes=10)
    tensor, array = images(4, 64, 64, 3)
    theirs.train()
    out = theirs(tensor)
    (out**2).sum().backward()

    structure, params, rest = nnx.split(train_view(ours), nnx.Param, ...)

    @jax.jit
    def gradient(params, rest):
        def loss(params):
            logits = nnx.merge(structure, params, rest, copy=True)(array)
            return jnp.sum(logits**2), logits

        return jax.grad(loss, has_aux=True)(params)

    grads, logits = gradient(params, rest)
    assert_close(logits, out.detach())
    assert_gradients_close(grads, theirs, 1e-5)


def test_width_and_depth_grow_as_the_paper_says():
    b3 = registry.build_abstract("efficientnet_b3")
    assert [len(stage) for stage in b3.blocks] == [2, 3, 3, 5, 5, 6, 2]
    assert [stage[-1].bn3.scale.shape[0] for stage in list(b3.blocks)[1:]] == [32, 48, 96, 136, 232, 384]
    assert (b3.bn1.scale.shape[0], b3.num_features) == (40, 1536)
    # Squeeze-and-excitation counts from the block's input: 0.25 * 24 of a block that expands 24 to 144.
    assert b3.blocks[1][0].se.conv_reduce.kernel.shape == (1, 1, 144, 6)


def test_lite_keeps_its_ends():
    lite4 = registry.build_abstract("tf_efficientnet_lite4")
    assert [len(stage) for stage in lite4.blocks] == [1, 4, 4, 6, 6, 8, 1]
    assert (lite4.bn1.scale.shape[0], lite4.num_features) == (32, 1280)
    assert lite4.blocks[1][0].se is None


def test_an_untrained_net_is_what_the_papers_say():
    model = EfficientNet(stages=B_STAGES[:1], head_features=320, num_classes=1000, rngs=nnx.Rngs(0))
    depthwise = model.blocks[0][0].conv_dw.kernel[...]  # the fan of a depthwise kernel is its own 9 taps
    np.testing.assert_allclose(jnp.std(depthwise), np.sqrt(2 / 9), rtol=0.15)
    np.testing.assert_allclose(jnp.std(model.conv_head.kernel[...]), np.sqrt(2 / 320), rtol=0.05)
    np.testing.assert_allclose(jnp.abs(model.classifier.kernel[...]).max(), 1000**-0.5, rtol=1e-2)
    assert not model.classifier.bias[...].any()
    assert (model.blocks[0][0].bn2.scale[...] == 1).all()


def test_stochastic_depth_leaves_the_last_block_less_than_all():
    model = registry.build_abstract("test_efficientnet", drop_path=0.5)
    rates = [block.drop_path.rate for stage in model.blocks for block in stage]
    np.testing.assert_allclose(rates, np.arange(5) / 5 * 0.5)


def test_a_shortcut_is_where_shapes_allow():
    for block in BLOCKS:
        options = {"stages": [Stage(block, 2, 3, 2, 16, 1)], "stem_features": 16, "head_features": 16}
        model = nnx.eval_shape(lambda options=options: EfficientNet(**options, rngs=nnx.Rngs(0)))
        assert [b.has_shortcut for b in model.blocks[0]] == [False, True]


def test_without_classes_it_ends_in_pooled_features_and_a_head_may_come():
    model = random_model("test_efficientnet", num_classes=0)
    features = jnp.ones((2, 2, 2, 256))
    assert model.forward_head(features).shape == (2, 256)
    model.reset_classifier(7, rngs=nnx.Rngs(1))
    assert model.forward_head(features).shape == (2, 7)
    assert model.num_classes == 7
