"""Weights written to a file and read again: equal values, timm's names, and the placement of the arrays."""

from __future__ import annotations

import os
import resource
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
from safetensors.numpy import load_file
from support.reference import import_timm
from support.weight_files import TINY, abstract, arrays, assert_same, build, logits, write

from jaxvision.errors import UserError
from jaxvision.models.layers.deferred import deferred
from jaxvision.models.layers.frozen import Frozen
from jaxvision.models.layers.mode import train_view
from jaxvision.train import partial
from jaxvision.weights import files, timm
from jaxvision.weights.weight_file import WeightFile

# Grouped and depthwise kernels, gates, deep stems, two heads.
SPECIAL = ["resnet50d", "resnext50_32x4d", "seresnet50", "deit_tiny_distilled_patch16_224", "tf_efficientnet_lite0"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize("is_abstract", [False, True])
def test_saved_weights_load_bit_for_bit(architecture, is_abstract, file):
    model = build(architecture, num_classes=7)
    timm.save_timm(model, file)
    target = abstract(architecture, num_classes=7) if is_abstract else build(architecture, seed=2, num_classes=7)
    assert timm.load_timm(target, file) is target
    assert_same(arrays(model), arrays(target))


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
    # BatchNorm's counters included, this is the file that timm would write.
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
def test_other_dtypes_are_cast_to_the_models(dtype, file):
    def cast(tensors):
        for key in tensors:
            tensors[key] = tensors[key].astype(dtype)

    got = arrays(timm.load_timm(abstract("test_resnet"), write(file, change=cast)))
    kernel = fill.tensor("conv1.0.weight", got["conv1.0.kernel"].transpose(3, 2, 0, 1).shape)
    assert got["conv1.0.kernel"].dtype == np.float32
    np.testing.assert_array_equal(got["conv1.0.kernel"], kernel.astype(dtype).astype(np.float32).transpose(2, 3, 1, 0))


def test_bfloat16_parameters_stay_bfloat16(file):
    model = timm.load_timm(abstract("test_vit", param_dtype=jnp.bfloat16), write(file, "test_vit"))
    assert model.head.kernel.dtype == jnp.bfloat16
    timm.save_timm(model, file)
    with safe_open(file, framework="np") as opened:
        assert opened.get_slice("head.weight").get_dtype() == "BF16"
    assert_same(arrays(model), arrays(timm.load_timm(build("test_vit", param_dtype=jnp.bfloat16), file)))


def test_statistics_stay_float32_beside_bfloat16_parameters(file):
    model = timm.load_timm(abstract("test_resnet", param_dtype=jnp.bfloat16), write(file))
    assert model.conv1[0].kernel.dtype == jnp.bfloat16
    assert model.bn1.mean.dtype == jnp.float32


def test_a_folder_stands_for_the_file_in_it(tmp_path):
    write(tmp_path / "model.safetensors")
    assert_same(
        arrays(timm.load_timm(build("test_resnet"), tmp_path)),
        arrays(timm.load_timm(build("test_resnet", seed=2), tmp_path / "model.safetensors")),
    )


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


def test_lora_is_kept_in_loading_and_merged_before_saving(file, tmp_path):
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


@pytest.mark.parametrize("is_abstract", [False, True])
def test_leaves_keep_their_sharding(is_abstract, file):
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split, replicated = NamedSharding(mesh, PartitionSpec(None, "data")), NamedSharding(mesh, PartitionSpec())
    model = abstract("test_vit") if is_abstract else build("test_vit")
    for name, leaf in timm.weights(model).items():
        sharding = split if name.endswith("fc1.kernel") else replicated
        old = leaf.get_raw_value()
        placed = (
            jax.ShapeDtypeStruct(old.shape, old.dtype, sharding=sharding)
            if is_abstract
            else jax.device_put(old, sharding)
        )
        leaf.set_value(placed)
    timm.load_timm(model, write(file, "test_vit"))
    kernel = model.blocks[0].mlp.fc1.kernel.get_value()
    assert kernel.sharding == split
    assert model.head.bias.get_value().sharding == replicated
    np.testing.assert_array_equal(np.asarray(kernel).T, load_file(file)["blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize("spec", [PartitionSpec("data"), PartitionSpec(None, "data")])
def test_a_sharded_leaf_reads_only_the_parts_of_its_devices(spec, file):
    """So each of several hosts reads only its own share of the file."""
    sizes = []

    class Watched(np.ndarray):
        def __getitem__(self, index):
            part = super().__getitem__(index)
            sizes.append(part.size)
            return part

    class WatchedFile(WeightFile):
        def __init__(self, file):
            self.file, self.path, self.shapes, self.dtypes = file, file.path, file.shapes, file.dtypes

        def tensor(self, name):
            tensor = self.file.tensor(name)
            return tensor.view(Watched) if name == "blocks.0.mlp.fc1.weight" else tensor

        def forget(self, name):
            self.file.forget(name)

    model = abstract("test_vit", param_dtype=jnp.bfloat16)
    leaf = timm.weights(model)["blocks.0.mlp.fc1.kernel"]
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("data",)), spec)
    leaf.set_value(jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=sharding))
    timm.load_timm(model, WatchedFile(files.open_weights(write(file, "test_vit"))))
    placed = model.blocks[0].mlp.fc1.kernel.get_value()
    assert placed.sharding == sharding
    expected = load_file(file)["blocks.0.mlp.fc1.weight"].T.astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(placed), expected)
    assert set(sizes) == {placed.size // len(jax.devices())}


def test_within_deferred_a_tensor_is_read_and_checked_when_it_is_placed(file):
    write(file, change=lambda tensors: tensors.update({"fc.bias": np.full_like(tensors["fc.bias"], np.nan)}))
    with deferred():
        leaves = timm.weights(timm.load_timm(abstract("test_resnet"), file))
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("data",)), PartitionSpec(None, None, None, "data"))
    placed = leaves["layer4.0.conv1.kernel"].get_raw_value().place(sharding if len(jax.devices()) == 8 else None)
    np.testing.assert_array_equal(placed, load_file(file)["layer4.0.conv1.weight"].transpose(2, 3, 1, 0))
    with pytest.raises(UserError, match=r"the tensor fc\.bias contains values that are NaN"):
        leaves["fc.bias"].get_raw_value().place(None)


def test_leaves_without_a_device_stay_uncommitted(file):
    model = timm.load_timm(build("test_resnet"), write(file))
    assert not any(leaf.get_value().committed for leaf in timm.weights(model).values())


def test_an_abstract_model_is_filled_completely(file):
    model = abstract("test_vit", num_classes=3, dropout=0.1, drop_path=0.1)
    timm.load_timm(model, write(file, "test_vit"), rngs=nnx.Rngs(params=1, dropout=2))
    leaves = jax.tree.leaves(nnx.state(model))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    keys = [jax.random.key_data(leaf).tolist() for leaf in leaves if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert len(keys) > 1
    assert len({tuple(key) for key in keys}) == len(keys)  # no two layers drop alike


def test_a_full_disk_leaves_the_earlier_file(file):
    timm.save_timm(build("test_resnet", num_classes=3), file)
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*An earlier file of that name is unchanged"):
            timm.save_timm(build("test_resnet"), file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        timm.save_timm(build("test_resnet"), tmp_path / "file" / "model.safetensors")


def test_missing_folders_are_created(tmp_path):
    timm.save_timm(build("test_resnet"), tmp_path / "a" / "b" / "model.safetensors")
    assert (tmp_path / "a" / "b" / "model.safetensors").stat().st_size > 100_000
