"""Weight files of a larger module, in which the names of the model share a prefix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.weight_files import abstract, arrays, assert_loads, assert_same, load_error, write

from jaxvision.classifier import load_classifier
from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.weights import timm


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def rename(prefix: str):
    def change(tensors: dict) -> None:
        for key in list(tensors):
            tensors[prefix + key] = tensors.pop(key)

    return change


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "backbone.",
        "encoder.",
        "net.",
        "timm_model.",
        "model._orig_mod.",
        "module.model.",
        "student.backbone.",
    ],
)
def test_a_prefix_is_removed(prefix, file, caplog):
    write(file, change=rename(prefix))
    assert_loads(file)
    assert create_model("test_resnet", checkpoint_path=file).num_classes == 1000
    assert load_classifier("test_resnet", checkpoint_path=file).model.num_classes == 1000
    assert not caplog.records


@pytest.mark.parametrize("architecture", ["test_vit", "test_efficientnet", "resnetv2_18", "vit_tiny_r_s16_p8_224"])
def test_a_prefix_is_removed_in_every_family(architecture, file):
    plain = arrays(timm.load_timm(abstract(architecture), write(file, architecture)))
    write(file, architecture, change=rename("model."))
    assert_same(plain, arrays(timm.load_timm(abstract(architecture), file)))


def test_the_number_of_classes_is_found_behind_a_prefix(file):
    write(file, num_classes=7, change=rename("model."))
    assert create_model("test_resnet", checkpoint_path=file).num_classes == 7
    assert load_classifier("test_resnet", checkpoint_path=file, num_classes=7).model.num_classes == 7
    with pytest.raises(UserError, match="has a head of 7 classes"):
        load_classifier("test_resnet", checkpoint_path=file, num_classes=8)


def test_tensors_beside_the_model_are_announced(file, caplog):
    def change(tensors):
        rename("model.")(tensors)
        tensors["criterion.weight"] = np.ones(1000, np.float32)

    write(file, change=change)
    assert_loads(file)
    assert caplog.messages == [f"{file}: not used: criterion.weight"]


def test_a_head_beside_the_backbone_is_announced(file, caplog):
    def change(tensors):
        head = {key: tensors.pop(key) for key in ("fc.weight", "fc.bias")}
        rename("backbone.")(tensors)
        tensors.update(head)

    write(file, change=change)
    assert create_model("test_resnet", checkpoint_path=file).num_classes == 0
    assert caplog.messages == [f"{file}: not used: fc.bias, fc.weight"]
    with pytest.raises(UserError, match=r"num_classes: got 1000, but .* has no head"):
        load_classifier("test_resnet", checkpoint_path=file, num_classes=1000)


def test_a_layer_of_the_same_name_in_another_module(file, caplog):
    def change(tensors):
        rename("backbone.")(tensors)
        tensors["head.tower.conv1.0.weight"] = tensors["head.tower.conv1.weight"] = np.ones((4, 4, 3, 3), np.float32)

    write(file, change=change)
    assert_loads(file)
    assert caplog.messages == [f"{file}: not used: head.tower.conv1.0.weight, head.tower.conv1.weight"]


def test_two_models_in_a_file_are_an_error_that_names_their_prefixes(file):
    def change(tensors):
        for key in list(tensors):
            tensors[f"encoder_q.{key}"] = tensors[f"encoder_k.{key}"] = tensors.pop(key)

    message = load_error(create_model("test_resnet"), write(file, change=change))
    assert "got 2 models, with the prefixes 'encoder_k.', 'encoder_q.', expected one" in message


#: The names of some tensors in weight files of other architectures.
FOREIGN = {
    "DenseNet of torchvision": (
        "features.conv0.weight",
        "features.denseblock1.denselayer1.conv1.weight",
        "features.denseblock1.denselayer2.conv1.weight",
        "features.denseblock2.denselayer1.conv1.weight",
    ),
    "DarkNet of timm": ("stem.conv1.weight", "stages.0.blocks.0.conv1.weight", "stages.1.blocks.0.conv1.weight"),
    "TWINS of timm": (
        "patch_embeds.0.proj.weight",
        "stages.0.patch_embed.proj.weight",
        "stages.1.patch_embed.proj.weight",
    ),
    "BERT of transformers": (
        "bert.embeddings.word_embeddings.weight",
        "bert.encoder.layer.0.attention.self.key.weight",
    ),
}


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_efficientnet", "resnet18"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_another_architecture_is_not_several_models(kind, architecture, file):
    save_file({name: np.zeros((2, 2, 1, 1), np.float32) for name in FOREIGN[kind]}, file)
    for load in (create_model, load_classifier):
        with pytest.raises(UserError) as error:
            load(architecture, checkpoint_path=file)
        message = str(error.value)
        assert message.startswith(f"{file} does not fit {architecture}: ")
        assert f"{len(FOREIGN[kind])} unexpected ({min(FOREIGN[kind])}, " in message
        assert "another architecture, or of this one with the names of another library" in message
        assert "models" not in message


def test_another_architecture_is_not_another_head(file):
    names = {"head.fc.weight": (9, 4), "patch_embed.proj.weight": (4, 3, 4, 4), "layers.0.attn.qkv.weight": (12, 4)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in names.items()}, file)
    with pytest.raises(UserError, match=r"missing .* may contain the weights of another architecture"):
        create_model("test_vit", checkpoint_path=file, num_classes=9)


def test_a_model_without_a_prefix_does_not_hide_another(file):
    def change(tensors):
        tensors.update({f"ema.{key}": value for key, value in tensors.items()})

    message = load_error(create_model("test_resnet"), write(file, change=change))
    assert "unexpected (ema.bn1.bias, " in message
    assert "The tensors with the prefix 'ema.' are a second copy, beside the model's. " in message
    assert "another architecture" not in message


@pytest.mark.parametrize(
    ("with_first_conv", "hint"),
    [
        (True, "The file has these names, but without the prefix of its others. Rename the tensors to one form."),
        (False, "The file has missing names with the prefix 'model.'. Rename the tensors to one form."),
    ],
)
def test_a_prefix_of_half_of_the_names_is_named(with_first_conv, hint, file):
    model = create_model("test_resnet")

    def change(tensors):
        keys = sorted(tensors, key=lambda key: key.startswith(model.first_conv), reverse=with_first_conv)
        for key in keys[: len(keys) // 2]:
            tensors[f"model.{key}"] = tensors.pop(key)

    message = load_error(model, write(file, change=change))
    assert message.endswith(hint)


def test_nothing_is_logged_about_the_head_before_the_names_fit(file, caplog):
    def change(tensors):
        for key in list(tensors):
            tensors[f"student.{key}"] = tensors[f"teacher.{key}"] = tensors.pop(key)

    write(file, num_classes=3, change=change)
    with pytest.raises(UserError, match=r"got 2 models, with the prefixes 'student.', 'teacher.'"):
        create_model("test_resnet", checkpoint_path=file, num_classes=3)
    assert not caplog.records


def test_the_counter_of_an_averaged_model_is_ignored(file, caplog):
    """torch.optim.swa_utils.AveragedModel saves ``module.*`` and the number of averaged models."""

    def change(tensors):
        rename("module.")(tensors)
        tensors["n_averaged"] = np.asarray(5)

    write(file, change=change)
    assert_loads(file)
    assert not caplog.records
