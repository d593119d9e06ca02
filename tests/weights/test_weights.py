"""jaxvision.weights.timm and .hub: files in, files out, and everything that a file can have wrong."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import io
import logging
import os
import pickle
import re
import resource
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from golden import fill
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.reference import import_timm

from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.layers.frozen import Frozen
from jaxvision.models.layers.mode import train_view
from jaxvision.train import partial
from jaxvision.weights import adapt, catalog, hub, timm

TINY = ["test_resnet", "test_vit", "test_efficientnet"]
# What is special about a family's tensors: grouped and depthwise kernels, gates, deep stems, two heads.
SPECIAL = ["resnet50d", "resnext50_32x4d", "seresnet50", "deit_tiny_distilled_patch16_224", "tf_efficientnet_lite0"]


@functools.cache
def _parts(architecture: str, **options):
    return nnx.split(registry.build_abstract(architecture, **options))


def abstract(architecture: str, **options) -> nnx.Module:
    return nnx.merge(*_parts(architecture, **options))


def build(architecture: str, seed: int = 1, **options) -> nnx.Module:
    """Returns a model of made-up weights, sooner than initializing it would."""
    model = abstract(architecture, **options)
    for name, leaf in timm.weights(model).items():
        tensor = fill.tensor(timm.timm_name(name), leaf.shape, seed=seed)
        leaf.set_value(jnp.asarray(tensor, leaf.get_raw_value().dtype))
    return model


def logits(model: nnx.Module, images: np.ndarray) -> np.ndarray:
    graph, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, jnp.asarray(images)))


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf.get_value()) for name, leaf in timm.weights(model).items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], *, but: tuple[str, ...] = ()) -> None:
    assert a.keys() == b.keys()
    for name in a:
        if not name.startswith(but):
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def write(path: Path, architecture: str = "test_resnet", change=None, **options) -> Path:
    """Writes a file with names and shapes of an architecture and made-up values; `change` may edit the tensors."""
    tensors = {}
    for name, leaf in timm.weights(abstract(architecture, **options)).items():
        key = timm.timm_name(name)
        tensors[key] = fill.tensor(key, timm.timm_shape(name, leaf.shape))
    if change is not None:
        change(tensors)
    save_file(tensors, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


# --- Out and in again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize("empty", [False, True])
def test_what_is_saved_is_loaded_bit_for_bit(architecture, empty, file):
    model = build(architecture, num_classes=7)
    timm.save_timm(model, file)
    target = abstract(architecture, num_classes=7) if empty else build(architecture, seed=2, num_classes=7)
    assert timm.load_timm(target, file) is target
    same(arrays(model), arrays(target))


@pytest.mark.timm
@pytest.mark.parametrize("architecture", TINY)
def test_timm_loads_what_we_save(architecture, file):
    import torch
    from safetensors.torch import load_file as torch_load_file

    model = build(architecture)
    timm.save_timm(model, file)
    theirs = import_timm().create_model(architecture).eval()
    theirs.load_state_dict(torch_load_file(file), strict=True)
    images = fill.images((1, model.image_size, model.image_size, 3))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(logits(model, images), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.timm
@pytest.mark.parametrize("architecture", [*TINY, *SPECIAL])
def test_a_saved_file_has_timms_keys_and_shapes(architecture, file):
    import torch

    timm.save_timm(build(architecture), file)
    with torch.device("meta"):
        state = import_timm().create_model(architecture).state_dict()
    with safe_open(file, framework="np") as opened:
        ours = {key: (opened.get_slice(key).get_shape(), opened.get_slice(key).get_dtype()) for key in opened.keys()}  # noqa: SIM118
    dtypes = {torch.float32: "F32", torch.int64: "I64"}
    # Counters of BatchNorm and all: the very file that timm would write.
    assert ours == {key: (list(value.shape), dtypes[value.dtype]) for key, value in state.items()}


@pytest.mark.timm
@pytest.mark.parametrize("architecture", TINY)
def test_we_load_what_timm_saves(architecture, file):
    import torch
    from safetensors.torch import save_file as torch_save_file

    torch.manual_seed(0)
    theirs = import_timm().create_model(architecture, num_classes=5).eval()
    torch_save_file(theirs.state_dict(), file)
    model = timm.load_timm(abstract(architecture, num_classes=5), file)
    images = fill.images((1, model.image_size, model.image_size, 3))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(logits(model, images), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_precisions_are_cast_to_the_models(dtype, file):
    def cast(tensors):
        for key in tensors:
            tensors[key] = tensors[key].astype(dtype)

    got = arrays(timm.load_timm(abstract("test_resnet"), write(file, change=cast)))
    kernel = fill.tensor("conv1.0.weight", got["conv1.0.kernel"].transpose(3, 2, 0, 1).shape)
    assert got["conv1.0.kernel"].dtype == np.float32
    np.testing.assert_array_equal(got["conv1.0.kernel"], kernel.astype(dtype).astype(np.float32).transpose(2, 3, 1, 0))


def test_parameters_of_bfloat16_are_kept_as_such(file):
    model = timm.load_timm(abstract("test_vit", param_dtype=jnp.bfloat16), write(file, "test_vit"))
    assert model.head.kernel.dtype == jnp.bfloat16
    timm.save_timm(model, file)
    with safe_open(file, framework="np") as opened:
        assert opened.get_slice("head.weight").get_dtype() == "BF16"
    same(arrays(model), arrays(timm.load_timm(build("test_vit", param_dtype=jnp.bfloat16), file)))


def test_statistics_stay_float32_beside_parameters_of_bfloat16(file):
    model = timm.load_timm(abstract("test_resnet", param_dtype=jnp.bfloat16), write(file))
    assert model.conv1[0].kernel.dtype == jnp.bfloat16
    assert model.bn1.mean.dtype == jnp.float32


def test_a_folder_stands_for_the_file_in_it(tmp_path):
    write(tmp_path / "model.safetensors")
    same(
        arrays(timm.load_timm(build("test_resnet"), tmp_path)),
        arrays(timm.load_timm(build("test_resnet", seed=2), tmp_path / "model.safetensors")),
    )


# --- Whatever state the model is in -----------------------------------------------------------------------------------


def test_a_train_view_is_filled_through_its_variables(file):
    model = build("test_resnet")
    timm.load_timm(train_view(model), write(file))
    np.testing.assert_array_equal(model.fc.bias[...], fill.tensor("fc.bias", (1000,)))


def test_frozen_leaves_are_filled_stay_frozen_and_are_saved(file, tmp_path):
    model = partial.freeze(build("test_resnet"), backbone=True)
    timm.load_timm(model, write(file))
    assert isinstance(model.conv1[0].kernel, Frozen)
    timm.save_timm(model, tmp_path / "again.safetensors")
    first, again = load_file(file), load_file(tmp_path / "again.safetensors")
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])


def test_lora_is_loaded_beneath_and_saved_merged(file, tmp_path):
    model = partial.add_lora(build("test_vit"), rank=2, rngs=nnx.Rngs(1))
    timm.load_timm(model, write(file, "test_vit"))
    qkv = model.blocks[0].attn.qkv
    np.testing.assert_array_equal(qkv.kernel[...].T, load_file(file)["blocks.0.attn.qkv.weight"])
    qkv.lora_b[...] = jnp.ones_like(qkv.lora_b[...])
    with pytest.raises(UserError, match="merge_lora"):
        timm.save_timm(model, tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()
    timm.save_timm(partial.merge_lora(model), tmp_path / "merged.safetensors")
    plain = timm.load_timm(build("test_vit"), tmp_path / "merged.safetensors")
    images = fill.images((1, model.image_size, model.image_size, 3))
    np.testing.assert_allclose(logits(plain, images), logits(model, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("empty", [False, True])
def test_leaves_are_placed_where_they_were(empty, file):
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split, whole = NamedSharding(mesh, PartitionSpec(None, "data")), NamedSharding(mesh, PartitionSpec())
    model = abstract("test_vit") if empty else build("test_vit")
    for name, leaf in timm.weights(model).items():
        sharding = split if name.endswith("fc1.kernel") else whole
        old = leaf.get_raw_value()
        placed = (
            jax.ShapeDtypeStruct(old.shape, old.dtype, sharding=sharding) if empty else jax.device_put(old, sharding)
        )
        leaf.set_value(placed)
    timm.load_timm(model, write(file, "test_vit"))
    kernel = model.blocks[0].mlp.fc1.kernel.get_value()
    assert kernel.sharding == split
    assert model.head.bias.get_value().sharding == whole
    np.testing.assert_array_equal(np.asarray(kernel).T, load_file(file)["blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize("spec", [PartitionSpec("data"), PartitionSpec(None, "data")])
def test_what_is_split_is_read_in_parts(spec):
    """No device is given more than its own part of the file, so that of many hosts each reads no more than its own."""

    sizes = []

    class Watched(np.ndarray):
        def __getitem__(self, index):
            part = super().__getitem__(index)
            sizes.append(part.size)
            return part

    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    tensor = np.arange(16 * 24, dtype=np.float32).reshape(16, 24)
    old = jax.ShapeDtypeStruct((16, 24), jnp.bfloat16, sharding=NamedSharding(mesh, spec))
    placed = timm._placed(tensor.view(Watched), old, what="")
    assert placed.sharding == old.sharding
    assert placed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(placed), tensor.astype(jnp.bfloat16))
    assert set(sizes) == {tensor.size // len(jax.devices())}


def test_a_leaf_that_was_nowhere_in_particular_stays_free(file):
    model = timm.load_timm(build("test_resnet"), write(file))
    assert not any(leaf.get_value().committed for leaf in timm.weights(model).values())


def test_an_abstract_model_is_whole_afterwards(file):
    model = abstract("test_vit", num_classes=3, dropout=0.1, drop_path=0.1)
    timm.load_timm(model, write(file, "test_vit"), rngs=nnx.Rngs(params=1, dropout=2))
    leaves = jax.tree.leaves(nnx.state(model))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    keys = [jax.random.key_data(leaf).tolist() for leaf in leaves if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert len(keys) > 1
    assert len({tuple(key) for key in keys}) == len(keys)  # no two layers drop alike


# --- Heads, channels, grids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*TINY, "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("empty", [False, True])
def test_another_number_of_classes_gets_a_fresh_head_and_nothing_else(architecture, empty, file, caplog):
    make = abstract if empty else build
    model = make(architecture, num_classes=7)
    heads = tuple(f"{attribute}." for attribute in model.classifier_names)
    before = None if empty else arrays(model)
    with caplog.at_level(logging.WARNING):
        timm.load_timm(model, write(file, architecture))
    assert "no head of 7 classes" in caplog.text
    got = arrays(model)
    same(got, arrays(timm.load_timm(abstract(architecture), file)), but=heads)
    kernels = [value for name, value in got.items() if name.startswith(heads) and name.endswith("kernel")]
    assert len(kernels) == len(heads)
    assert all(kernel.shape[1] == 7 and kernel.std() > 0 for kernel in kernels)
    if not empty:
        for name in got:
            assert np.array_equal(got[name], before[name]) == name.startswith(heads), name


def test_a_fresh_head_is_a_matter_of_the_seed(file):
    write(file)
    heads = [
        timm.load_timm(abstract("test_resnet", num_classes=3), file, rngs=nnx.Rngs(seed)).fc.kernel[...]
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])


def test_a_fresh_head_may_be_had_for_the_same_classes(file, caplog):
    model = build("test_resnet")
    before = np.asarray(model.fc.kernel[...])
    timm.load_timm(model, write(file), head="fresh")
    np.testing.assert_array_equal(model.fc.kernel[...], before)
    assert not caplog.records


def test_no_head_takes_a_file_with_one(file, caplog):
    model = timm.load_timm(abstract("test_vit", num_classes=0), write(file, "test_vit"))
    assert model.head is None
    assert not caplog.records


def test_a_file_without_a_head_gives_a_fresh_one(file):
    model = timm.load_timm(abstract("test_vit"), write(file, "test_vit", num_classes=0))
    assert model.head.kernel.shape == (64, 1000)


def test_a_head_that_has_to_fit_and_does_not(file):
    with pytest.raises(UserError, match=r"fc\.weight \[7, \d+\] in the file, \[1000, \d+\] in the model.*head='fresh'"):
        timm.load_timm(build("test_resnet"), write(file, num_classes=7), head="load")
    with pytest.raises(UserError, match="'auto', 'load' or 'fresh'"):
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
def test_an_adapted_vit_is_timms(architecture, channels, size, classes, file):
    """The whole chain against timm's own loading: channels, grid and head at once."""
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
            got = value.transpose(timm._axes(name, value.ndim))
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6, err_msg=name)


# --- The grid of positions, which their number alone does not tell ----------------------------------------------------


def grid_of(path: Path) -> str | None:
    with safe_open(path, framework="np") as opened:
        return (opened.metadata() or {}).get("jaxvision.grid")


@pytest.mark.parametrize("size", [(64, 400), (48, 192), (400, 64), 96])  # 4 x 25 are as many as the native 10 x 10
def test_a_vits_grid_is_in_its_file_and_comes_back(size, file):
    model = build("test_vit", image_size=size, depth=1)
    timm.save_timm(model, file)
    assert grid_of(file) == "x".join(map(str, model.grid_size))
    again = timm.load_timm(abstract("test_vit", image_size=size, depth=1), file)
    same(arrays(again), arrays(model))


def test_a_file_that_says_its_grid_is_resampled_from_it(file):
    model = build("test_vit", image_size=(64, 144), depth=1)  # 4 x 9, as many as 6 x 6
    timm.save_timm(model, file)
    again = timm.load_timm(abstract("test_vit", image_size=96, depth=1), file)
    wanted = adapt.position_grid(arrays(model)["pos_embed"], 1 + 36, prefix=1, old=(4, 9), new=(6, 6))
    np.testing.assert_array_equal(arrays(again)["pos_embed"], wanted)
    assert np.abs(wanted - arrays(model)["pos_embed"]).max() > 0.001


@pytest.mark.parametrize("said", [None, "", "10 x 10", "4x26", "-4x-25", "4x25x1", "x"])
def test_a_file_that_does_not_say_its_grid_is_read_as_timm_reads_it(said, file, caplog):
    """As many positions as the architecture's own grid: timm takes its own weights for that one, others as they are."""
    model = build("test_vit", image_size=(64, 400), depth=1)
    timm.save_timm(model, file)
    tensors = load_file(file)
    save_file(tensors, file, metadata={"format": "pt"} | ({} if said is None else {"jaxvision.grid": said}))
    again = arrays(timm.load_timm(abstract("test_vit", image_size=(64, 400), depth=1), file))
    np.testing.assert_array_equal(again["pos_embed"], tensors["pos_embed"])
    assert "it is taken for 4 x 25, the model's" in caplog.text
    again = arrays(timm.load_timm(abstract("test_vit", image_size=(64, 400), depth=1), file, published=True))
    wanted = adapt.position_grid(tensors["pos_embed"], 101, prefix=1, old=(10, 10), new=(4, 25))
    np.testing.assert_array_equal(again["pos_embed"], wanted)
    save_file(tensors, file)  # without any metadata
    native = arrays(timm.load_timm(abstract("test_vit", depth=1), file))
    np.testing.assert_array_equal(native["pos_embed"], tensors["pos_embed"])


def test_only_a_vits_file_says_a_grid(file):
    timm.save_timm(build("test_resnet"), file)
    assert grid_of(file) is None


@pytest.mark.timm
def test_timm_loads_a_file_that_says_its_grid(file):
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


# --- What can be wrong with a file ------------------------------------------------------------------------------------


def unchanged(model: nnx.Module, path: Path, **options) -> str:
    """Returns the message of the error that loading raises; the model has to be as it was."""
    before = arrays(model)
    with pytest.raises(UserError) as error:
        timm.load_timm(model, path, **options)
    same(before, arrays(model))
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700, len(message)
    return message


def test_weights_of_another_architecture_list_what_does_not_fit(file):
    message = unchanged(build("test_resnet"), write(file, "test_vit"))
    assert "does not fit test_resnet" in message
    assert "missing (" in message
    assert "unexpected (blocks.0.attn.proj.bias, " in message
    assert "more)" in message
    assert "another architecture" in message


def test_another_size_of_the_same_architecture_lists_shapes(file):
    message = unchanged(
        build("vit_tiny_patch16_224", image_size=32, num_classes=2),
        write(file, "vit_small_patch16_224", image_size=32, num_classes=2),
    )
    assert "of another shape (" in message
    assert "[1152] in the file, [576] in the model" in message
    assert "missing" not in message


def test_one_tensor_missing_and_one_left_over(file):
    def change(tensors):
        tensors["bn1.wait"] = tensors.pop("bn1.weight")

    message = unchanged(build("test_resnet"), write(file, change=change))
    assert "1 missing (bn1.weight), 1 unexpected (bn1.wait)" in message


def test_another_kernel_size_is_not_adapted(file):
    def change(tensors):
        tensors["conv1.0.weight"] = np.zeros((*tensors["conv1.0.weight"].shape[:2], 5, 5), np.float32)

    assert "1 of another shape (conv1.0.weight" in unchanged(build("test_resnet"), write(file, change=change))


def test_counters_are_neither_missing_nor_left_over(file):
    def change(tensors):
        tensors["bn1.num_batches_tracked"] = np.asarray(3)

    timm.load_timm(build("test_resnet"), write(file, change=change))


def test_a_file_cut_anywhere(file):
    data = write(file).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    places = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 1}
    rng = np.random.default_rng(0)
    while len(places) < 50:  # half of them within the header, which is a small part of the file
        places.add(int(rng.integers(header if len(places) % 2 else len(data))))
    model = build("test_resnet")
    for n in sorted(places):
        file.write_bytes(data[:n])
        assert f"({n:,} bytes) is truncated or not a safetensors file" in unchanged(model, file), n


def test_a_header_that_promises_too_much(file):
    file.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    assert "not a safetensors file" in unchanged(build("test_resnet"), file)
    file.write_bytes(b"<!DOCTYPE html><html>404</html>")
    assert "not a safetensors file" in unchanged(build("test_resnet"), file)


def test_what_is_not_there(tmp_path):
    assert "no such weight file" in unchanged(build("test_resnet"), tmp_path / "nothing.safetensors")
    assert "no such weight file" in unchanged(build("test_resnet"), tmp_path)
    for name in ("a\nb", "a\0b", "x" * 5000, "../../nowhere"):
        assert "no such weight file" in unchanged(build("test_resnet"), name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
def test_a_value_that_is_not_finite_is_named(value, dtype, file):
    def change(tensors):
        for key in tensors:
            tensors[key] = tensors[key].astype(dtype)
        tensors["layer4.0.conv1.weight"][-1, 0, 0, 0] = value

    message = unchanged(build("test_resnet"), write(file, change=change))
    assert "the tensor layer4.0.conv1.weight holds values that are NaN or infinite" in message
    assert "too large" not in message


def test_values_too_large_for_the_models_dtype_are_told(file):
    def change(tensors):
        tensors["head.bias"][3] = 1e6

    message = unchanged(build("test_vit", param_dtype=jnp.float16), write(file, "test_vit", change=change))
    assert "head.bias" in message
    assert "too large for float16" in message


def test_large_values_are_not_taken_for_infinite(file):
    def change(tensors):
        tensors["fc.bias"][:2] = 3e38  # their sum is

    model = timm.load_timm(abstract("test_resnet"), write(file, change=change))
    assert float(model.fc.bias[0]) == np.float32(3e38)


def test_arrays_do_not_live_in_the_file(file):
    data = write(file, "test_vit").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    padding = b" " * (-start % 64)  # at such an address JAX would take a numpy array as it is
    file.write_bytes((start - 8 + len(padding)).to_bytes(8, "little") + data[8:start] + padding + data[start:])
    model = timm.load_timm(abstract("test_vit"), file)
    before = {name: value.copy() for name, value in arrays(model).items()}
    with file.open("r+b") as opened:  # in place: the very pages that were read
        opened.seek(start + len(padding))
        opened.write(bytes(len(data) - start))
    same(before, {name: np.asarray(leaf.get_value()) for name, leaf in timm.weights(model).items()})
    assert before["head.kernel"].any()


# --- PyTorch's pickles ------------------------------------------------------------------------------------------------


def state_dict(architecture: str = "test_resnet", seed: int = 0) -> dict:
    """Returns timm's tensors for an architecture, of made-up values, as PyTorch has them."""
    import torch

    state = {}
    for name, leaf in timm.weights(abstract(architecture)).items():
        key = timm.timm_name(name)
        state[key] = torch.from_numpy(fill.tensor(key, timm.timm_shape(name, leaf.shape), seed=seed).copy())
        if name.endswith(".mean"):
            state[name.removesuffix("mean") + "num_batches_tracked"] = torch.tensor(7)
    return state


def loaded(path: Path, seed: int = 0, architecture: str = "test_resnet", atol: float = 0) -> None:
    """Asserts that what is loaded from `path` is the state_dict of this seed."""
    for name, value in arrays(timm.load_timm(abstract(architecture), path)).items():
        expected = fill.tensor(timm.timm_name(name), timm.timm_shape(name, value.shape), seed=seed)
        got = value.transpose(timm._axes(name, value.ndim))
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.timm
@pytest.mark.parametrize("name", ["model.pth", "model.pt", "checkpoint.pth.tar", "pytorch_model.bin"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_a_pickled_state_dict(name, wrapper, tmp_path):
    import torch

    torch.save({wrapper + key: value for key, value in state_dict().items()}, tmp_path / name)
    loaded(tmp_path / name)
    assert timm.num_classes(tmp_path / name, ("fc",)) == 1000


@pytest.mark.timm
@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", None])
def test_a_checkpoint_of_timms_trainer(average, tmp_path):
    """With what its CheckpointSaver puts there: flags, an optimizer's state, an epoch; the average is what counts."""
    import argparse

    import torch

    library = import_timm()
    model = library.create_model("test_resnet")
    model.load_state_dict(state_dict())
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint = {
        "epoch": 3,
        "arch": "test_resnet",
        "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "version": 2,
        "args": argparse.Namespace(lr=0.1, model="test_resnet"),
        "amp_scaler": {"scale": 1.0},
        "metric": 71.5,
    }
    if average:
        checkpoint[average] = {f"module.{key}": value for key, value in state_dict(seed=5).items()}
    path = tmp_path / "model_best.pth.tar"
    torch.save(checkpoint, path)
    loaded(path, seed=5 if average else 0)
    # What timm itself takes from the same file.
    from timm.models import load_checkpoint

    load_checkpoint(model, str(path))
    ours = arrays(timm.load_timm(abstract("test_resnet"), path))
    np.testing.assert_array_equal(ours["fc.kernel"].T, model.fc.weight.detach().numpy())


@pytest.mark.timm
def test_the_saver_of_timms_trainer_itself(tmp_path):
    import argparse

    import torch

    library = import_timm()
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    model = library.create_model("test_resnet")
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    args = argparse.Namespace(model="test_resnet", opt="sgd")
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), lr=0.1), args, model_ema=ema, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(0, metric=1.0)
    got = arrays(timm.load_timm(abstract("test_resnet"), tmp_path / "last.pth.tar"))
    np.testing.assert_array_equal(got["fc.kernel"].T, ema.module.fc.weight.detach().numpy())
    assert not np.array_equal(got["fc.kernel"].T, model.fc.weight.detach().numpy())


@pytest.mark.timm
def test_ijepas_nesting_and_older_pickles(tmp_path):
    import torch

    state = {f"module.{key}": value for key, value in state_dict().items()}
    torch.save({"encoder": state, "predictor": {}, "opt": None, "epoch": 300}, tmp_path / "a.pth.tar")
    torch.save(state, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": {"state_dict": state}}, tmp_path / "c.pth")
    for name in ("a.pth.tar", "b.pth", "c.pth"):
        loaded(tmp_path / name)


@pytest.mark.timm
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_pickles_of_other_precisions(dtype, tmp_path):
    import torch

    state = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in state_dict().items()}
    torch.save(state, tmp_path / "model.pth")
    got = arrays(timm.load_timm(abstract("test_resnet"), tmp_path / "model.pth"))
    for name, value in got.items():
        expected = state[timm.timm_name(name)].float().numpy()
        np.testing.assert_array_equal(value.transpose(timm._axes(name, value.ndim)), expected, err_msg=name)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module."])
def test_what_wrapped_a_model_is_taken_off_safetensors_too(wrapper, file):
    def change(tensors):
        for key in list(tensors):
            tensors[wrapper + key] = tensors.pop(key)

    loaded(write(file, change=change))
    assert timm.num_classes(file, ("fc",)) == 1000


def test_one_tensor_in_two_wrappings(file):
    def change(tensors):
        tensors["module.fc.bias"] = tensors["fc.bias"]

    assert "holds the tensor 'fc.bias' twice" in unchanged(build("test_resnet"), write(file, change=change))


class Evil:
    """Runs code when it is unpickled by the book."""

    def __reduce__(self):
        return (os.mkdir, (str(Path(os.environ["EVIL"]) / "was_here"),))


@pytest.mark.timm
def test_pickles_run_no_code(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("EVIL", str(tmp_path))
    for i, content in enumerate(
        [{"state_dict": state_dict(), "extra": Evil()}, import_timm().create_model("test_vit")]
    ):
        torch.save(content, tmp_path / f"{i}.pth")
        message = unchanged(build("test_resnet"), tmp_path / f"{i}.pth")
        assert "holds more than tensors (" in message
        assert "save its state_dict" in message
    assert not (tmp_path / "was_here").exists()
    for protocol in (2, 4):
        (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(), protocol=protocol))
        assert "PyTorch pickle that cannot be read as weights" in unchanged(build("test_resnet"), tmp_path / "raw.pth")
    assert not (tmp_path / "was_here").exists()


@pytest.mark.timm
def test_pickles_without_weights(tmp_path):
    import torch

    for content, words in [
        ({"epoch": 3}, "no state_dict is in it"),
        ({"state_dict": {}}, "no state_dict is in it"),
        ([1, 2], "of a list"),
    ]:
        torch.save(content, tmp_path / "model.pth")
        assert words in unchanged(build("test_resnet"), tmp_path / "model.pth")


@pytest.mark.timm
def test_a_pickle_cut_anywhere(tmp_path):
    import torch

    path = tmp_path / "model.pth"
    torch.save(state_dict(), path)
    data, model = path.read_bytes(), build("test_resnet")
    for n in np.linspace(2, len(data) - 1, 10).astype(int):
        path.write_bytes(data[:n])
        assert "PyTorch pickle that cannot be read as weights" in unchanged(model, path)


@pytest.mark.timm
def test_a_pickle_with_something_wrong(tmp_path):
    import torch

    for change, words in [
        (lambda x: x.fill_(float("nan")), "the tensor fc.bias holds values that are NaN"),
        (lambda x: x.to(torch.int8), "fc.bias torch.int8"),
        (lambda x: x[:7].clone(), "fc.bias [7] in the file"),
    ]:
        state = state_dict()
        state["fc.bias"] = change(state["fc.bias"])
        torch.save(state, tmp_path / "model.pth")
        assert words in unchanged(build("test_resnet"), tmp_path / "model.pth", head="load")


def test_a_pickle_offered_as_safetensors(file):
    for start in (b"PK\x03\x04 and so on", pickle.dumps({}, protocol=2), pickle.dumps({}, protocol=4)):
        file.write_bytes(start)
        message = unchanged(build("test_resnet"), file)
        assert "not what its name says but a PyTorch pickle" in message
        assert "model.pth" in message


def test_pickles_need_torch_and_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04")
    message = unchanged(build("test_resnet"), tmp_path / "model.pth")
    assert "PyTorch pickle" in message
    assert "pip install '.[torch]'" in message


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_quantized_tensors_are_refused(file):
    def change(tensors):
        tensors["fc.weight"] = tensors["fc.weight"].astype(np.int8)

    assert "fc.weight I8" in unchanged(build("test_resnet"), write(file, change=change))


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_earlier_file(file):
    timm.save_timm(build("test_resnet", num_classes=3), file)
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*an earlier file of that name is as it was"):
            timm.save_timm(build("test_resnet"), file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        timm.save_timm(build("test_resnet"), tmp_path / "file" / "model.safetensors")


def test_missing_folders_are_made(tmp_path):
    timm.save_timm(build("test_resnet"), tmp_path / "a" / "b" / "model.safetensors")
    assert (tmp_path / "a" / "b" / "model.safetensors").stat().st_size > 100_000


# --- The hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, repository: str, architecture: str, *, revision: str = "main", name: str = "", **options) -> Path:
    """Puts a file into the hub's cache, in the layout that huggingface_hub keeps there."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = hashlib.sha1(revision.encode()).hexdigest()
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return write(folder / "snapshots" / commit / (name or "model.safetensors"), architecture, **options)


def test_what_the_cache_has_needs_no_network(cache):
    path = put(cache, "timm/test_resnet.r160_in1k", "test_resnet")
    assert hub.fetch(catalog.lookup("test_resnet")) == path
    assert hub.fetch("timm/test_resnet.r160_in1k") == path


def test_without_a_network_the_ways_out_are_named(cache):
    with pytest.raises(UserError) as error:
        hub.fetch(catalog.lookup("resnet18"))
    message = str(error.value)
    assert "\n" not in message
    for word in ("timm/resnet18.a1_in1k", "checkpoint_path=", "HF_HOME", "pretrained=False"):
        assert word in message


def test_licenses_are_said(cache, caplog):
    put(cache, "timm/resnet18.fb_swsl_ig1b_ft_in1k", "test_resnet")
    hub.fetch(catalog.lookup("resnet18.fb_swsl_ig1b_ft_in1k"))
    assert "cc-by-nc-4.0: non-commercial use only" in caplog.text


def test_a_revision_is_pinned_by_name_or_by_commit(cache):
    repository = "timm/test_resnet.r160_in1k"
    main, old = (put(cache, repository, "test_resnet", revision=revision) for revision in ("main", "v1.0"))
    entry = catalog.lookup("test_resnet")
    assert hub.fetch(entry) == hub.fetch(entry, revision="main") == main
    assert hub.fetch(entry, revision="v1.0") == hub.fetch(entry, revision=old.parent.name) == old != main
    with pytest.raises(UserError, match=r"cannot fetch .* at revision v2 from the hub"):
        hub.fetch(entry, revision="v2")


@pytest.mark.parametrize("revision", ["../../other", "/etc", "", "a b", "a\nb", "a/../../b", ".."])
def test_a_revision_that_is_a_path(cache, revision):
    put(cache, "timm/test_resnet.r160_in1k", "test_resnet")
    with pytest.raises(UserError, match="a revision is a branch, a tag or a commit") as error:
        hub.fetch(catalog.lookup("test_resnet"), revision=revision)
    assert "\n" not in str(error.value)


def test_create_model_takes_the_revision(cache):
    put(cache, "timm/test_resnet.r160_in1k", "test_resnet")
    put(cache, "timm/test_resnet.r160_in1k", "test_resnet", revision="v2", change=lambda x: x["fc.bias"].fill(0.5))
    model = create_model("test_resnet", pretrained=True, revision="v2")
    assert float(model.fc.bias[0]) == 0.5
    assert float(create_model("test_resnet", pretrained=True).fc.bias[0]) != 0.5
    for options in ({}, {"pretrained": True, "checkpoint_path": "x"}):
        with pytest.raises(UserError, match="revision is of weights on the hub"):
            create_model("test_resnet", revision="v2", **options)


def test_a_file_that_is_not_the_one_that_is_known(cache):
    path = put(cache, "timm/test_resnet.r160_in1k", "test_resnet")
    entry = catalog.lookup("test_resnet")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hub.fetch(dataclasses.replace(entry, sha256=digest)) == path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"is not the file that is known as test_resnet.r160_in1k: .* not {digest}"):
        hub.fetch(dataclasses.replace(entry, sha256=digest))


def test_without_safetensors_the_pickle_is_taken(cache):
    path = put(cache, "some/one", "test_resnet", name="pytorch_model.bin")
    assert hub.fetch("some/one") == path
    loaded(path)  # it is one of safetensors by content, which is what counts


def test_what_the_hub_answers_is_told(cache, monkeypatch):
    """Without a network: its exceptions are raised in its place."""
    import huggingface_hub
    from huggingface_hub import errors

    asked = []

    def answer(error, *, but=()):
        def metadata(url, **options):
            asked.append(url.rsplit("/", 1)[-1])
            if asked[-1] not in but:
                raise error.__new__(error)  # what they are made with differs between releases

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)

    for error, words in [
        (errors.RepositoryNotFoundError, "the hub has no repository 'a/b', or it is private"),
        (errors.RevisionNotFoundError, "has no revision 'v9'"),
        (
            errors.RemoteEntryNotFoundError,
            "the hub has no file a/b/model.safetensors at revision v9, nor a pytorch_mod",
        ),
    ]:
        answer(error)
        with pytest.raises(UserError, match=re.escape(words)):
            hub.fetch("a/b", revision="v9")
    asked.clear()
    answer(errors.RemoteEntryNotFoundError, but=("pytorch_model.bin",))
    with pytest.raises(UserError, match="cannot fetch"):  # the download itself, which the test has no network for
        hub.fetch("a/b")
    assert asked == ["model.safetensors", "pytorch_model.bin"]


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`; knows ranges; breaks off after half of it while `breaks` is left."""

    content, breaks, ranges = b"", 0, []

    def do_GET(self):
        wanted = self.headers.get("Range")
        Server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if Server.breaks:
            Server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.mark.timm
def test_a_pickle_at_a_url_is_kept_and_taken_up_where_it_broke_off(tmp_path, monkeypatch, caplog):
    import torch
    from huggingface_hub import constants

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    content = io.BytesIO()
    torch.save({"encoder": {f"module.{key}": value for key, value in state_dict().items()}}, content)
    Server.content, Server.breaks, Server.ranges = content.getvalue(), 1, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x/IN1K.pth.tar"
        entry = catalog.Entry(
            architecture="mine", tag="ijepa", url=url, filename="IN1K.pth.tar", license="cc-by-nc-4.0"
        )
        with pytest.raises(UserError, match=f"cannot fetch {url} .*HF_HUB_OFFLINE is set.*checkpoint_path, or a copy"):
            hub.fetch(entry)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(UserError, match="goes on from there"):
            hub.fetch(entry)
        assert not (tmp_path / "torch" / "checkpoints" / "IN1K.pth.tar").exists()
        path = hub.fetch(entry)
        assert hub.fetch(entry) == path  # and no further request
        server.shutdown()
    assert Server.ranges == [None, f"bytes={len(Server.content) // 2}-"]
    assert path.read_bytes() == Server.content
    loaded(path)
    assert "non-commercial use only" in caplog.text
    with pytest.raises(UserError, match="they have no revisions"):
        hub.fetch(entry, revision="v1")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"PyTorch pickle; .* jaxvision-nnx\[torch\]"):
        hub.fetch(entry)


def test_a_tag_without_weights_is_answered_with_those_that_have_some(cache):
    with pytest.raises(UserError, match=r"no weights for 'test_resnet.none'; of test_resnet there are r160_in1k; pass"):
        hub.fetch(catalog.Entry(architecture="test_resnet", tag="none"))


def test_an_architecture_without_published_weights(cache):
    with pytest.raises(UserError, match="publishes no weights for 'mine'"):
        hub.fetch(catalog.Entry(architecture="mine"))


@pytest.mark.parametrize("name", ["a/b/c", "../etc", "a/../b", "/etc/passwd", "a\nb", "", "a/b\0", "a/" + "x" * 500])
def test_a_name_that_no_repository_can_have(cache, name):
    with pytest.raises(UserError, match="not the name of a repository") as error:
        hub.fetch(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
