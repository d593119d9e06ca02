"""Messages about weight files of other libraries: what was recognized, left out and is computed otherwise."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from golden import fill
from safetensors.numpy import save_file
from support.foreign import value, write
from support.paths import TESTS
from support.photos import NAME, needs_lite0
from support.weight_files import arrays, assert_same, logits

from jaxvision.classifier import load_classifier
from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.weights import files, packages

GOLDEN = json.loads((TESTS / "golden" / "foreign.json").read_text(encoding="utf-8"))


def load(name, folder, caplog, shapes=None, **options):
    """Returns the model of a row with other options, after its file was written; the messages are in `caplog`."""
    row = GOLDEN[name]
    path = write(folder / f"model{row['suffix']}", row["shapes"] if shapes is None else shapes)
    caplog.clear()
    with caplog.at_level("INFO", "jaxvision"):
        return create_model(
            options.pop("architecture", row["architecture"]), checkpoint_path=path, **(row["options"] | options)
        )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision-vit", "has the tensor names of torchvision, which are converted to timm's"),
        ("torchvision-efficientnet", "has the tensor names of torchvision, which are converted to timm's"),
        ("transformers-deit", "has the tensor names of transformers, which are converted to timm's"),
        ("transformers-vit-memory", "not used: pooler.dense.bias, pooler.dense.weight"),
        ("transformers-mae", "not used: decoder.decoder_embed.bias, decoder.decoder_embed.weight"),
        ("transformers-dinov2", "not used: classifier.bias, classifier.weight, dinov2.embeddings.mask_token"),
        ("transformers-clip", "not used: logit_scale, text_model.embeddings.position_embedding.weight"),
        ("transformers-clip", "has the tensor names of transformers (CLIP)"),
        ("open-clip", "has the tensor names of CLIP (OpenAI or open_clip)"),
        ("openai-clip", "not used: ln_final.bias, ln_final.weight, logit_scale, and"),
        ("dinov2-registers", "has the tensor names of Meta's DINOv2 with registers"),
        ("dinov2", "not used: mask_token"),
        ("big-vision-map", "has the tensor names of Google's vision_transformer or big_vision"),
    ],
)
def test_what_was_recognized_and_left_out(name, words, tmp_path, caplog):
    load(name, tmp_path, caplog)
    assert words in caplog.text


@needs_lite0
@pytest.mark.parametrize("is_given", [True, False])
def test_a_note_names_the_library_of_a_file_that_the_user_gives(is_given, tmp_path):
    """Not of the pretrained weights, whatever file they are in."""
    file = packages.find(NAME)
    arguments = ["--checkpoint", str(file)] if is_given else []
    command = [sys.executable, "-m", "jaxvision.cli", "convert", NAME, str(tmp_path / "out"), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    note = f"note: {file} has the tensor names of efficientnet-pytorch, which are converted to timm's\n"
    assert process.stderr == (note if is_given else "")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("torchvision-efficientnet", {"architecture": "tf_efficientnet_b0"}, "with padding='torch', but"),
        ("torchvision-efficientnet", {"architecture": "tf_efficientnet_b0"}, "with epsilon=1e-05, but"),
        ("torchvision-efficientnet-v2", {"epsilon": 1e-5}, "Build the model with epsilon=0.001."),
        ("google-vit", {"activation": "gelu"}, "Build the model with activation='gelu_tanh'."),
        ("open-clip", {}, "does not state its activation, and the model computes GELU"),
        ("transformers-clip", {"activation": "gelu"}, "has no config.json beside it"),
        ("transformers-vit", {}, "with layer_norm_eps=1e-12 by transformers, but with 1e-06 here"),
        (
            "google-vit",
            {"image_size": 64},
            "are resampled as in timm (bicubic), which gives other values than Google's",
        ),
    ],
)
def test_a_difference_from_the_library_is_a_warning(name, options, words, tmp_path, caplog):
    load(name, tmp_path, caplog, **options)
    assert [record for record in caplog.records if record.levelname == "WARNING" and words in record.getMessage()]


def test_no_advice_for_a_file_that_does_not_fit(tmp_path, caplog):
    with pytest.raises(UserError, match="does not fit"):
        load("torchvision-efficientnet", tmp_path, caplog, architecture="tf_efficientnet_lite0")
    assert "Build the model with" not in caplog.text


@pytest.mark.parametrize("name", ["torchvision-efficientnet", "google-vit", "open-clip-quickgelu", "big-vision-gap"])
def test_no_warning_without_a_difference(name, tmp_path, caplog):
    load(name, tmp_path, caplog)
    assert not [text for text in caplog.messages if "Build the model" in text or "not state" in text]


@pytest.mark.parametrize(
    ("name", "architecture", "words"),
    [
        ("torchvision-vit", "vit_base_patch16_224", "by the mean (0.485, 0.456, 0.406), but the transform by (0.5"),
        ("torchvision-vit", "deit_base_patch16_224", None),
        ("google-vit", "vit_base_patch16_224", None),
        ("google-vit", "deit_base_patch16_224", "by the mean (0.5, 0.5, 0.5), but the transform by (0.485, 0.456"),
    ],
)
def test_another_normalization_is_a_warning(name, architecture, words, tmp_path, caplog):
    row = GOLDEN[name]
    load_classifier(
        architecture, checkpoint_path=write(tmp_path / f"model{row['suffix']}", row["shapes"]), **row["options"]
    )
    found = [text for text in caplog.messages if "normalizes images" in text]
    assert len(found) == (words is not None)
    assert not words or words in found[0]


def test_the_config_of_transformers_states_the_activation(tmp_path, caplog):
    config = {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load("transformers-clip", tmp_path, caplog)  # a model with quick GELU
    assert "was trained with activation='gelu', but the model computes with 'quick_gelu'" in caplog.text


def test_the_state_of_openais_archive_states_the_activation(tmp_path, caplog):
    shapes = GOLDEN["openai-clip"]["shapes"] | {"input_resolution": [], "context_length": []}
    load("openai-clip", tmp_path, caplog, shapes, architecture="vit_base_patch16_clip_224")
    assert "was trained with activation='quick_gelu', but the model computes with 'gelu'" in caplog.text


def test_a_tower_without_the_text_tower(tmp_path, caplog):
    whole = arrays(load("open-clip", tmp_path, caplog))
    tensors = GOLDEN["open-clip"]["shapes"]
    names = {name.removeprefix("visual."): name for name in tensors if name.startswith("visual.")}
    path = tmp_path / "visual.npz"  # the format does not matter
    np.savez(path, **{name: value(full, tuple(tensors[full])) for name, full in names.items()})
    alone = create_model("vit_base_patch16_clip_224", checkpoint_path=path, **GOLDEN["open-clip"]["options"])
    assert_same(arrays(alone), whole)


@pytest.mark.parametrize("name", ["transformers-vit", "transformers-clip", "open-clip", "torchvision-efficientnet-v2"])
def test_a_library_in_a_larger_module(name, tmp_path, caplog):
    alone = arrays(load(name, tmp_path, caplog))
    row = GOLDEN[name]
    tensors = {f"model.{each}": np.asarray(value(each, tuple(shape))) for each, shape in row["shapes"].items()}
    save_file({**tensors, "criterion.weight": np.ones(3, np.float32)}, tmp_path / "larger.safetensors")
    larger = create_model(row["architecture"], checkpoint_path=tmp_path / "larger.safetensors", **row["options"])
    assert "criterion.weight" in caplog.text
    assert_same(arrays(larger), alone)


def test_a_resnet_of_clip_is_refused(tmp_path):
    path = write(
        tmp_path / "a.safetensors",
        {"visual.attnpool.positional_embedding": [5, 8], "visual.layer1.0.conv1.weight": [8, 8, 1, 1]},
    )
    with pytest.raises(
        UserError, match=r"got CLIP's ResNet .*, expected a model that jaxvision has\. Use one of CLIP's"
    ):
        files.open_weights(path)


def test_a_layer_before_the_head_leaves_out_the_head(tmp_path, caplog):
    extra = {"opt/target/pre_logits/kernel": [64, 64], "opt/target/pre_logits/bias": [64]}
    model = load("google-vit", tmp_path, caplog, GOLDEN["google-vit"]["shapes"] | extra)
    assert model.num_classes == 0
    assert "not used: opt.target.head.bias, opt.target.head.kernel, opt.target.pre_logits.kernel" in caplog.text


def test_positions_without_one_for_the_class_token_need_an_option(tmp_path, caplog):
    with pytest.raises(UserError, match="position embeddings"):
        load("big-vision-token-scan", tmp_path, caplog, no_embed_class=False)
    assert "Build the model with no_embed_class=True." in caplog.text


def test_an_error_names_the_library(tmp_path):
    path = write(tmp_path / "model.safetensors", GOLDEN["torchvision-efficientnet"]["shapes"])
    with pytest.raises(UserError, match=r"with timm's names for those of torchvision, does not fit test_resnet: "):
        create_model("test_resnet", checkpoint_path=path)


def test_a_head_for_other_classes(tmp_path, caplog):
    model = load("torchvision-vit", tmp_path, caplog, num_classes=3)
    assert model.head.kernel.shape == (64, 3)
    assert "has a head of 5 classes, which is not used: the head of 3 classes is newly initialized" in caplog.text


def test_bit_as_tensorflow_wrote_it(tmp_path):
    """BiT of big_vision under the names of the original files, which differ in nothing else."""
    row = GOLDEN["big-vision-bit"]
    letters = " abc"
    tensors = {}
    for name, shape in row["shapes"].items():
        parts, tensor = name.split("/"), value(name, tuple(shape))
        if parts[0].startswith("block"):
            number, layer = parts[2][-1], parts[2]
            kind = "a/proj" if layer == "conv_proj" else letters[int(number)]
            parts[2] = f"{kind}/{'group_norm' if layer.startswith('gn') else 'standardized_conv2d'}"
        renamed = "/".join(parts).replace("norm-pre-head", "group_norm").replace("conv_root", "standardized_conv2d_17")
        if "group_norm" in renamed:
            renamed, tensor = renamed.replace("scale", "gamma").replace("bias", "beta"), tensor.reshape(-1)
        if parts[0] == "head":
            renamed = renamed.replace("head", "head/conv2d")
            tensor = tensor[None, None] if tensor.ndim == 2 else tensor
        tensors[f"resnet/{renamed}"] = tensor
    np.savez(tmp_path / "bit.npz", **tensors)
    model = create_model(row["architecture"], checkpoint_path=tmp_path / "bit.npz", **row["options"])
    expected = np.asarray(row["logits"])
    got = logits(model, fill.images((2, 64, 64, 3)))
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()
