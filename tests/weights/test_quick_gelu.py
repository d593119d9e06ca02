"""Weights that were trained with quick GELU and that timm also lists under an architecture with exact GELU."""

from __future__ import annotations

import pytest
from flax import nnx
from support.reference import import_timm

from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.models import registry
from jaxvision.models.layers.mode import eval_view

PLAIN = "vit_base_patch32_clip_224"  # exact GELU; its tag openai was trained with quick GELU
HUGE = "vit_huge_patch14_clip_378"  # exact GELU; all of its tags were trained with quick GELU
SMALL = {"image_size": 64, "depth": 1, "embed_dim": 64, "num_heads": 2, "num_classes": 5}


def test_weights_trained_with_quick_gelu_use_it(caplog):
    model = create_model(f"{PLAIN}.openai", **SMALL)
    assert dict(model.options)["activation"] == "quick_gelu"
    assert f"using activation='quick_gelu', which the weights {PLAIN}.openai were trained with" in caplog.text


@pytest.mark.parametrize(
    ("name", "options"), [(f"{PLAIN}.laion2b_ft_in1k", {}), (PLAIN, {}), (f"{PLAIN}.openai", {"activation": "gelu"})]
)
def test_other_weights_and_a_given_activation_are_respected(name, options, caplog):
    model = create_model(name, **SMALL, **options)
    assert dict(model.options).get("activation", "gelu") == "gelu"
    assert not caplog.records


@pytest.mark.timm
@pytest.mark.parametrize("name", [f"{PLAIN}.openai", HUGE])
@pytest.mark.parametrize("by_name", [True, False])
def test_an_export_keeps_its_activation(name, by_name, tmp_path):
    architecture = name.partition(".")[0]
    import torch
    from support.against_timm import fill, images, randomized

    patch = 14 if architecture == HUGE else 32
    size = {"depth": 1, "embed_dim": 64, "num_heads": 2, "num_classes": 5}
    if by_name:
        model = create_model(name, image_size=2 * patch, **size)
    else:  # exact GELU, because no weights are named
        model = eval_view(registry.build(architecture, image_size=2 * patch, **size, rngs=nnx.Rngs(0)))
    theirs = randomized(import_timm().create_model(architecture, img_size=2 * patch, **size))
    fill(model, theirs.state_dict())
    preprocess = Preprocess(image_size=2 * patch)
    save_classifier(tmp_path, Classifier(model, tuple("abcde"), preprocess))
    x, ours = images(2, 2 * patch, 2 * patch, 3)
    expected = model(ours)
    assert (load_classifier(tmp_path).model(ours) == expected).all()
    again = import_timm().create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert abs(again(x).numpy() - expected).max() < 1e-5 * abs(expected).max()


@pytest.mark.timm
def test_both_names_give_timms_logits():
    twin = "vit_base_patch32_clip_quickgelu_224"
    import torch
    from support.against_timm import fill, images, randomized

    options = {"depth": 1, "num_classes": 5}
    theirs = randomized(import_timm().create_model(twin, img_size=64, **options).eval())
    x, ours = images(2, 64, 64, 3)
    with torch.no_grad():
        expected = theirs(x).numpy()
    logits = {
        name: fill(create_model(name, image_size=64, **options), theirs.state_dict())(ours)
        for name in (f"{twin}.openai", f"{PLAIN}.openai", PLAIN)
    }
    scale = abs(expected).max()
    assert abs(logits[f"{twin}.openai"] - expected).max() < 1e-5 * scale
    assert abs(logits[f"{PLAIN}.openai"] - expected).max() < 1e-5 * scale
    assert abs(logits[PLAIN] - expected).max() > 1e-4 * scale
