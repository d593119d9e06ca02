"""What is special to ResNets, against real timm with the same weights. What all models share: test_contract.py."""

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
from jaxvision.models.layers.mode import train_view
from jaxvision.models.resnet import BasicBlock, Bottleneck, Parts, ResNet
from jaxvision.weights.timm import timm_name


def channels_last(tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def small(**options):
    """Returns a pair of ResNets of four bottlenecks, with the arguments of each side's class."""
    import_timm()
    from timm.models.resnet import Bottleneck
    from timm.models.resnet import ResNet as TimmResNet

    ours, theirs = options["ours"], options["theirs"]
    reference = TimmResNet(Bottleneck, (1, 1, 1, 1), num_classes=10, **theirs).eval()
    model = nnx.eval_shape(lambda: ResNet(depths=(1, 1, 1, 1), num_classes=10, **ours, rngs=nnx.Rngs(0)))
    return randomised(reference), fill(model, reference.state_dict())


# Odd sides: the pools and strides of every stage meet a border. Logits of the full nets are in test_golden.py.
@pytest.mark.timm
@pytest.mark.parametrize(
    "case",
    [
        "test_resnet",
        {"ours": {"groups": 32, "base_width": 4}, "theirs": {"cardinality": 32, "base_width": 4}},
        {
            "ours": {"gate": "se", "stem_width": 32, "avg_down": True, "base_width": 128},
            "theirs": {
                "block_args": {"attn_layer": "se"},
                "stem_type": "deep",
                "stem_width": 32,
                "avg_down": True,
                "base_width": 128,
            },
        },
    ],
    ids=["test_resnet", "resnext", "wide SE-ResNet-D"],
)
def test_every_feature_map_and_the_logits_are_timms(case):
    theirs, ours = pair(case) if isinstance(case, str) else small(**case)
    tensor, array = images(2, 47, 47, 3)

    @jax.jit
    def forward(model, x):
        maps = model.forward_intermediates(x, intermediates_only=True)
        return maps, model.forward_head(maps[-1]), model.forward_head(maps[-1], pre_logits=True)

    maps, logits, pooled = forward(ours, array)
    wanted = theirs.forward_intermediates(tensor, intermediates_only=True)
    assert len(maps) == len(wanted) == 5
    for a, b in zip(maps, wanted, strict=True):
        assert_close(a, channels_last(b))
    assert_close(logits, theirs(tensor).detach())
    assert_close(pooled, theirs.forward_head(wanted[-1], pre_logits=True).detach())


@pytest.mark.timm
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", ["test_resnet", "resnet50", "resnet50d"])
def test_layer_groups_are_timms(name, coarse):
    import_timm()
    import torch
    from timm.models import group_parameters

    with torch.device("meta"):
        theirs = import_timm().create_model(name)
    wanted = group_parameters(theirs, theirs.group_matcher(coarse=coarse), reverse=True)
    ours = registry.build_abstract(name)
    names = tree.names(nnx.state(ours, nnx.Param))
    patterns = ours.layer_groups(coarse=coarse)
    got = tree.match(names, [(pattern, i) for i, pattern in enumerate(patterns)], default=len(patterns))
    assert {timm_name(n): group for n, group in got.items()} == wanted


@pytest.mark.timm
def test_a_training_step_has_timms_gradients_and_statistics():
    theirs, ours = pair("test_resnet", num_classes=10)
    tensor, array = images(4, 64, 64, 3)
    theirs.train()
    out = theirs(tensor)
    (out**2).sum().backward()

    structure, params, rest = nnx.split(train_view(ours), nnx.Param, ...)

    @jax.jit
    def step(params, rest):
        def loss(params):
            model = nnx.merge(structure, params, rest, copy=True)
            logits = model(array)
            return jnp.sum(logits**2), (logits, nnx.state(model, nnx.BatchStat))

        return jax.grad(loss, has_aux=True)(params)

    grads, (logits, statistics) = step(params, rest)
    assert_close(logits, out.detach())
    # A ReLU whose input is zero but for rounding passes the gradient on in one net and not in the other.
    assert_gradients_close(grads, theirs, 2e-4)

    # PyTorch keeps the unbiased variance, Flax the one that it normalises with: they differ by n / (n - 1).
    after = theirs.state_dict()
    before = dict(zip(tree.names(rest), jax.tree.leaves(rest), strict=True))
    for name, got in zip(tree.names(statistics), jax.tree.leaves(statistics), strict=True):
        reference = after[timm_name(name)].numpy()
        if name.endswith("var"):
            stage = {"conv1": 32, "bn1": 32, "layer1": 16, "layer2": 8, "layer3": 4, "layer4": 2}
            side = stage[name.split(".")[0]]
            first = name.startswith(("layer3.0.bn1",))  # before the stride
            n = 4 * (2 * side if first else side) ** 2
            old = 0.9 * np.asarray(before[name])
            reference = old + (reference - old) * (n - 1) / n
        assert_close(got, reference, 1e-5)


def test_an_untrained_block_is_what_the_papers_say():
    for block, last in ((BasicBlock, "bn2"), (Bottleneck, "bn3")):
        made = block(Parts(nnx.Rngs(0)), 32, 32, stride=2)
        assert not getattr(made, last).scale[...].any()  # a branch starts as nothing
        assert (made.bn1.scale[...] == 1).all()
        assert (made.downsample[1].scale[...] == 1).all()
        np.testing.assert_allclose(jnp.std(made.conv2.kernel[...]), np.sqrt(2 / (9 * 32)), rtol=0.02)


def test_stochastic_depth_rises_to_the_last_block():
    model = registry.build_abstract("resnet18", drop_path=0.7)
    rates = [block.drop_path.rate for i in range(1, 5) for block in getattr(model, f"layer{i}")]
    np.testing.assert_allclose(rates, np.arange(8) / 7 * 0.7)


def test_without_classes_it_ends_in_pooled_features_and_a_head_may_come():
    model = random_model("test_resnet", num_classes=0)
    features = jnp.ones((2, 2, 2, 96))
    assert model.forward_head(features).shape == (2, 96)
    before = dict(zip(tree.names(nnx.state(model)), jax.tree.leaves(nnx.state(model)), strict=True))
    model.reset_classifier(7, rngs=nnx.Rngs(1))
    assert model.forward_head(features).shape == (2, 7)
    after = dict(zip(tree.names(nnx.state(model)), jax.tree.leaves(nnx.state(model)), strict=True))
    assert set(after) - set(before) == {"fc.kernel", "fc.bias"}
    assert all(after[name] is before[name] for name in before)


def test_dropout_acts_in_training_only():
    model = random_model("test_resnet", dropout=0.5)
    features = jnp.ones((2, 2, 2, 96))
    assert (model.forward_head(features, pre_logits=True) == 1).all()
    dropped = train_view(model).forward_head(features, pre_logits=True)
    assert set(np.unique(dropped)) == {0.0, 2.0}
