"""Hybrids of convnets and Vision Transformers compared with timm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.against_timm import assert_close, assert_gradients_close, images, pair, randomized
from support.reference import import_timm

from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers import sizes
from jaxvision.models.layers.mode import train_view
from jaxvision.weights.timm import load_timm, timm_name, weights

ONE_BLOCK = {"depth": 1, "embed_dim": 48, "num_heads": 2, "num_classes": 5}


@pytest.mark.timm
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_r26_s32_224", {"img_size": 64, **ONE_BLOCK}),
        ("vit_small_resnet50d_s16_224", {"img_size": 32, **ONE_BLOCK}),
        ("vit_tiny_r_s16_p8_224", {"img_size": (64, 96), "in_chans": 4, **ONE_BLOCK}),
        ("vit_base_mci_224", {"img_size": 32, "depth": 1, "num_classes": 5}),
    ],
)
def test_features_and_logits_match_timm(name, options) -> None:
    import torch

    theirs, ours = pair(name, **options)
    size = sizes.pair("image_size", options["img_size"])
    torch_x, x = images(2, *size, options.get("in_chans", 3))
    run = jax.jit(lambda model, x: (model.forward_intermediates(x, 1), model(x)))
    (features, (last,)), logits = run(ours, x)
    with torch.no_grad():
        wanted, (torch_last,) = theirs.forward_intermediates(torch_x, 1)
        assert_close(features, wanted)
        assert_close(last, torch_last.permute(0, 2, 3, 1))
        assert_close(logits, theirs(torch_x))


@pytest.mark.timm
@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_base_mci_224"])
def test_training_step_matches_timm(name) -> None:
    import torch

    size = 64 if "r_s16" in name else 32
    theirs, ours = pair(name, img_size=size, depth=1, num_classes=5)
    torch_x, x = images(2, size, size, 3)
    labels = np.array([3, 1])
    loss = torch.nn.functional.cross_entropy(theirs.train()(torch_x), torch.tensor(labels))
    loss.backward()

    @nnx.jit
    def run(model, x):
        def loss(model):
            return -jnp.take_along_axis(jax.nn.log_softmax(model(x)), labels[:, None], axis=1).mean()

        return nnx.value_and_grad(loss)(train_view(model))

    value, gradients = run(ours, x)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert_gradients_close(gradients, theirs, 1e-5)
    after = theirs.state_dict()
    for leaf, variable in weights(ours).items():
        if leaf.endswith(".mean"):
            assert_close(variable.get_value(), after[timm_name(leaf)])


@pytest.mark.timm
def test_initial_weights_are_distributed_like_timms() -> None:
    import torch

    for name in ("vit_small_r26_s32_224", "vit_tiny_r_s16_p8_224"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            theirs = import_timm().create_model(name, img_size=64, **ONE_BLOCK).state_dict()
        ours = registry.build(name, image_size=64, rngs=nnx.Rngs(0), **ONE_BLOCK)
        for leaf, variable in weights(ours).items():
            if leaf.startswith("patch_embed."):
                value, wanted = np.asarray(variable.get_value()), theirs[timm_name(leaf)].numpy()
                rel = 0.1 if value.size > 5000 else 0.5
                assert value.std() == pytest.approx(float(wanted.std()), rel=rel, abs=1e-12), leaf
                assert value.mean() == pytest.approx(float(wanted.mean()), abs=5e-3), leaf


@pytest.mark.timm
def test_weights_adapted_to_another_size_match_timm(tmp_path) -> None:
    import torch
    from safetensors.torch import save_file

    timm, file, name = import_timm(), tmp_path / "model.safetensors", "vit_tiny_r_s16_p8_224"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(randomized(timm.create_model(name, num_classes=9, depth=1)).state_dict(), file)
    overlay, options = {"file": str(file), "num_classes": 9}, {"num_classes": 9, "depth": 1, "patch_size": 4}
    theirs = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=96, in_chans=1, **options
    ).eval()
    ours = load_timm(registry.build_abstract(name, image_size=96, in_channels=1, **options), file)
    torch_x, x = images(1, 96, 96, 1)
    assert_close(jax.jit(lambda model, x: model(x))(ours, x), theirs(torch_x).detach(), 2e-5)


def test_invalid_image_sizes_are_errors() -> None:
    with pytest.raises(UserError, match=r"image_size: got 80, expected a multiple of the patch size 32\. .* 64 and 96"):
        registry.build_abstract("vit_small_r26_s32_224", image_size=80)
    model = registry.build_abstract("vit_small_r26_s32_224", image_size=64)
    assert (model.grid_size, model.feature_info[0].stride, model.first_conv) == (
        (2, 2),
        32,
        "patch_embed.backbone.stem.conv",
    )
    with pytest.raises(UserError, match=r"images: got shape \[1, 96, 96, 3\], expected"):
        model(jnp.zeros((1, 96, 96, 3)))
