"""Errors for files that are damaged, incomplete or of another architecture."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from support.weight_files import abstract, arrays, assert_loads, assert_same, build, load_error, write

from jaxvision.weights import timm


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_weights_of_another_architecture(file):
    message = load_error(build("test_resnet"), write(file, "test_vit"))
    assert "does not fit test_resnet" in message
    assert "missing (" in message
    assert "unexpected (blocks.0.attn.proj.bias, " in message
    assert "more)" in message
    assert "another architecture" in message


def test_another_size_of_the_same_architecture(file):
    message = load_error(
        build("vit_tiny_patch16_224", image_size=32, num_classes=2),
        write(file, "vit_small_patch16_224", image_size=32, num_classes=2),
    )
    assert "of another shape (" in message
    assert "[1152] in the file, [576] in the model" in message
    assert "missing" not in message


def test_a_missing_and_an_unexpected_tensor(file):
    def change(tensors):
        tensors["bn1.wait"] = tensors.pop("bn1.weight")

    message = load_error(build("test_resnet"), write(file, change=change))
    assert "1 missing (bn1.weight), 1 unexpected (bn1.wait)" in message


def test_another_kernel_size_is_not_adapted(file):
    def change(tensors):
        tensors["conv1.0.weight"] = np.zeros((*tensors["conv1.0.weight"].shape[:2], 5, 5), np.float32)

    assert "1 of another shape (conv1.0.weight" in load_error(build("test_resnet"), write(file, change=change))


def test_batch_counters_are_ignored(file):
    def change(tensors):
        tensors["bn1.num_batches_tracked"] = np.asarray(3)

    timm.load_timm(build("test_resnet"), write(file, change=change))


def test_a_truncated_file(file):
    data = write(file).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    places = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 1}
    rng = np.random.default_rng(0)
    while len(places) < 50:  # half of them within the header, which is a small part of the file
        places.add(int(rng.integers(header if len(places) % 2 else len(data))))
    model = build("test_resnet")
    for n in sorted(places):
        file.write_bytes(data[:n])
        words = f"({n:,} bytes) is truncated or not a safetensors file" if n else "got an empty file"
        assert words in load_error(model, file), n


def test_a_damaged_header(file):
    file.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    assert "not a safetensors file" in load_error(build("test_resnet"), file)


def test_a_missing_file(tmp_path):
    assert "no such weight file" in load_error(build("test_resnet"), tmp_path / "nothing.safetensors")
    assert "got a folder without weights (no files)" in load_error(build("test_resnet"), tmp_path)
    for name in ("a\nb", "a\0b", "x" * 5000, "../../nowhere"):
        assert "no such weight file" in load_error(build("test_resnet"), name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
def test_values_that_are_not_finite(value, dtype, file):
    def change(tensors):
        for key in tensors:
            tensors[key] = tensors[key].astype(dtype)
        tensors["layer4.0.conv1.weight"][-1, 0, 0, 0] = value

    message = load_error(build("test_resnet"), write(file, change=change))
    assert "the tensor layer4.0.conv1.weight contains values that are NaN or infinite" in message
    assert "too large" not in message


def test_values_too_large_for_the_models_dtype(file):
    def change(tensors):
        tensors["head.bias"][3] = 1e6

    message = load_error(build("test_vit", param_dtype=jnp.float16), write(file, "test_vit", change=change))
    assert "head.bias" in message
    assert "too large for float16" in message


def test_large_values_are_not_infinite(file):
    def change(tensors):
        tensors["fc.bias"][:2] = 3e38  # their sum overflows

    model = timm.load_timm(abstract("test_resnet"), write(file, change=change))
    assert float(model.fc.bias[0]) == np.float32(3e38)


def test_arrays_do_not_share_memory_with_the_file(file):
    data = write(file, "test_vit").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    padding = b" " * (-start % 64)  # at such an address JAX could use a numpy array without a copy
    file.write_bytes((start - 8 + len(padding)).to_bytes(8, "little") + data[8:start] + padding + data[start:])
    model = timm.load_timm(abstract("test_vit"), file)
    before = {name: value.copy() for name, value in arrays(model).items()}
    with file.open("r+b") as opened:  # in place, so that the same mapped pages change
        opened.seek(start + len(padding))
        opened.write(bytes(len(data) - start))
    assert_same(before, {name: np.asarray(leaf.get_value()) for name, leaf in timm.weights(model).items()})
    assert before["head.kernel"].any()


def test_quantized_tensors(file):
    def change(tensors):
        tensors["fc.weight"] = tensors["fc.weight"].astype(np.int8)

    assert "fc.weight I8" in load_error(build("test_resnet"), write(file, change=change))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed(wrapper, file):
    def change(tensors):
        for key in list(tensors):
            tensors[wrapper + key] = tensors.pop(key)

    assert_loads(write(file, change=change))
    assert timm.num_classes(file, ("fc",)) == 1000


def test_one_tensor_with_two_prefixes(file):
    def change(tensors):
        tensors["module.fc.bias"] = tensors["fc.bias"]

    assert "got the tensor 'fc.bias' twice" in load_error(build("test_resnet"), write(file, change=change))
