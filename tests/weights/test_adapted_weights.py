"""Weights for another head, other input channels or another grid of positions."""

from __future__ import annotations

import logging
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.reference import import_timm
from support.weight_files import TINY, abstract, arrays, as_timms, assert_same, build, logits, write

from jaxvision.errors import UserError
from jaxvision.models.base import Model, PatchWeights
from jaxvision.weights import adapt, timm


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("architecture", [*TINY, "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("is_abstract", [False, True])
def test_another_number_of_classes_changes_only_the_head(architecture, is_abstract, file, caplog):
    make = abstract if is_abstract else build
    model = make(architecture, num_classes=7)
    heads = tuple(f"{attribute}." for attribute in model.classifier_names)
    before = None if is_abstract else arrays(model)
    with caplog.at_level(logging.WARNING):
        timm.load_timm(model, write(file, architecture))
    assert "has a head of 1000 classes, which is not used: the head of 7 classes is newly initialized" in caplog.text
    got = arrays(model)
    assert_same(got, arrays(timm.load_timm(abstract(architecture), file)), but=heads)
    kernels = [value for name, value in got.items() if name.startswith(heads) and name.endswith("kernel")]
    assert len(kernels) == len(heads)
    assert all(kernel.shape[1] == 7 and kernel.std() > 0 for kernel in kernels)
    if not is_abstract:
        for name in got:
            assert np.array_equal(got[name], before[name]) == name.startswith(heads), name


def test_a_fresh_head_depends_on_the_seed(file):
    write(file)
    heads = [
        timm.load_timm(abstract("test_resnet", num_classes=3), file, rngs=nnx.Rngs(seed)).fc.kernel[...]
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])


def test_a_fresh_head_with_the_same_classes(file, caplog):
    model = build("test_resnet")
    before = np.asarray(model.fc.kernel[...])
    timm.load_timm(model, write(file), head="fresh")
    np.testing.assert_array_equal(model.fc.kernel[...], before)
    assert not caplog.records


def test_a_model_without_a_head_loads_a_file_with_one(file, caplog):
    model = timm.load_timm(abstract("test_vit", num_classes=0), write(file, "test_vit"))
    assert model.head is None
    assert not caplog.records


def test_a_file_without_a_head_gives_a_fresh_one(file):
    model = timm.load_timm(abstract("test_vit"), write(file, "test_vit", num_classes=0))
    assert model.head.kernel.shape == (64, 1000)


def test_a_required_head_that_does_not_fit(file):
    with pytest.raises(UserError, match=r"fc\.weight \[7, \d+\] in the file, \[1000, \d+\] in the model.*head='fresh'"):
        timm.load_timm(build("test_resnet"), write(file, num_classes=7), head="load")
    with pytest.raises(UserError, match="expected 'auto', 'load' or 'fresh'"):
        timm.load_timm(build("test_resnet"), file, head="none")


def test_the_number_of_classes_of_a_file(file):
    assert timm.num_classes(write(file, num_classes=7), ("fc",)) == 7
    assert timm.num_classes(write(file, "deit_tiny_distilled_patch16_224", num_classes=9), ("head", "head_dist")) == 9
    assert timm.num_classes(write(file, "test_vit", num_classes=0), ("head",)) == 0


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_input_channels(architecture, channels, file):
    write(file, architecture)
    model = timm.load_timm(abstract(architecture, in_channels=channels), file, head="load")
    key = f"{model.first_conv}.weight"
    expected = adapt.input_channels(load_file(file)[key], channels).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(arrays(model)[f"{model.first_conv}.kernel"], expected)


@pytest.mark.timm
@pytest.mark.parametrize("architecture", ["test_vit", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 96, 10), (5, 208, 1000)])
def test_an_adapted_vit_matches_timm(architecture, channels, size, classes, file):
    """Compares channels, grid and head at once with timm's own loading."""
    import torch
    from safetensors.torch import save_file as torch_save_file

    library = import_timm()
    torch.manual_seed(0)
    torch_save_file(library.create_model(architecture).state_dict(), file)
    theirs = library.create_model(
        architecture,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file)},
        in_chans=channels,
        img_size=size,
        num_classes=classes,
    ).eval()
    model = abstract(architecture, in_channels=channels, image_size=size, num_classes=classes)
    timm.load_timm(model, file)
    state = theirs.state_dict()
    heads = tuple(f"{attribute}." for attribute in model.classifier_names) if classes != 1000 else ()
    for name, value in arrays(model).items():
        if not name.startswith(heads):
            expected = state[timm.timm_name(name)].numpy()
            got = as_timms(name, value)
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6, err_msg=name)


def grid_of(path: Path) -> str | None:
    with safe_open(path, framework="np") as opened:
        return (opened.metadata() or {}).get("jaxvision.grid")


@pytest.mark.parametrize(
    "size", [(64, 400), (48, 192), (400, 64), 96]
)  # 4 x 25 positions are as many as the native 10 x 10
def test_a_file_of_a_vit_contains_its_grid(size, file):
    model = build("test_vit", image_size=size, depth=1)
    timm.save_timm(model, file)
    assert grid_of(file) == "x".join(map(str, model.grid_size))
    again = timm.load_timm(abstract("test_vit", image_size=size, depth=1), file)
    assert_same(arrays(again), arrays(model))


def test_the_grid_in_the_metadata_is_used_for_resampling(file):
    model = build("test_vit", image_size=(64, 144), depth=1)  # 4 x 9, as many as 6 x 6
    timm.save_timm(model, file)
    again = timm.load_timm(abstract("test_vit", image_size=96, depth=1), file)
    wanted = adapt.position_grid(arrays(model)["pos_embed"], 1 + 36, prefix=1, old=(4, 9), new=(6, 6))
    np.testing.assert_array_equal(arrays(again)["pos_embed"], wanted)
    assert np.abs(wanted - arrays(model)["pos_embed"]).max() > 0.001


@pytest.mark.parametrize("stated", [None, "", "10 x 10", "4x26", "-4x-25", "4x25x1", "x"])
def test_a_file_without_a_grid_is_read_as_in_timm(stated, file, caplog):
    """With as many positions as the architecture's own grid has, timm resamples only its own weights."""
    model = build("test_vit", image_size=(64, 400), depth=1)
    timm.save_timm(model, file)
    tensors = load_file(file)
    save_file(tensors, file, metadata={"format": "pt"} | ({} if stated is None else {"jaxvision.grid": stated}))
    again = arrays(timm.load_timm(abstract("test_vit", image_size=(64, 400), depth=1), file))
    np.testing.assert_array_equal(again["pos_embed"], tensors["pos_embed"])
    assert "assuming that of the model, 4 x 25" in caplog.text
    again = arrays(timm.load_timm(abstract("test_vit", image_size=(64, 400), depth=1), file, published=True))
    wanted = adapt.position_grid(tensors["pos_embed"], 101, prefix=1, old=(10, 10), new=(4, 25))
    np.testing.assert_array_equal(again["pos_embed"], wanted)
    save_file(tensors, file)  # without any metadata
    native = arrays(timm.load_timm(abstract("test_vit", depth=1), file))
    np.testing.assert_array_equal(native["pos_embed"], tensors["pos_embed"])


def test_a_file_of_a_resnet_contains_no_grid(file):
    timm.save_timm(build("test_resnet"), file)
    assert grid_of(file) is None


@pytest.mark.timm
def test_timm_loads_a_file_with_a_grid(file):
    import torch
    from safetensors.torch import load_file as load_torch

    model = build("test_vit", image_size=(64, 400), depth=1)
    timm.save_timm(model, file)
    theirs = import_timm().create_model("test_vit", img_size=(64, 400), depth=1).eval()
    theirs.load_state_dict(load_torch(file), strict=True)
    images = np.random.default_rng(0).normal(size=(1, 64, 400, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(logits(model, images), wanted, atol=1e-5 * np.abs(wanted).max())


class OwnPatches(Model):
    """A model of one's own, which declares what loading adapts."""

    classifier_names = ("head",)
    missing_weight_hints = ((r"gain", "Train it again."),)

    def __init__(self, *, grid: tuple[int, int]):
        self.num_classes, self.architecture, self.rows_and_columns = 2, "own", grid
        self.places = nnx.Param(jnp.arange(1.0, 9.0).reshape(1, 8, 1))
        self.gain = nnx.Param(jnp.float32(3))  # a scalar
        self.head = nnx.Linear(1, 2, rngs=nnx.Rngs(0))

    def patch_weights(self) -> PatchWeights:
        return PatchWeights(positions="places", grid=self.rows_and_columns)

    def ignored_weights(self) -> tuple[str, ...]:
        return ("teacher.",)


def test_a_model_of_ones_own_declares_what_is_adapted(file):
    timm.save_timm(OwnPatches(grid=(2, 4)), file)
    assert grid_of(file) == "2x4"
    tensors = load_file(file) | {"teacher.weight": np.ones(3, np.float32)}
    save_file(tensors, file, {"jaxvision.grid": "2x4"})
    expected = adapt.position_grid(tensors["places"], 8, prefix=0, old=(2, 4), new=(4, 2))
    assert not np.array_equal(expected, tensors["places"])
    model = timm.load_timm(OwnPatches(grid=(4, 2)), file)
    np.testing.assert_array_equal(model.places[...], expected)
    assert model.gain.shape == ()
    del tensors["gain"], tensors["teacher.weight"]
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"does not fit own: 1 missing .* Train it again\."):
        timm.load_timm(OwnPatches(grid=(2, 4)), file)
