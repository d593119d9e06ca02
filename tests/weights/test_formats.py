"""Files that are no weights, weights of other formats, and dtypes that are not loaded: each error says what it is."""

from __future__ import annotations

import io
import json
import os
import tarfile
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.weight_files import abstract, arrays, assert_loads, build, load_error, write

from jaxvision.errors import UserError
from jaxvision.weights import files, timm


def tar() -> bytes:
    """Returns an archive as PyTorch before 0.1.10 wrote it."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return content.getvalue()


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pth", b"\n<!DOCTYPE html><html>404</html>", "got a web page, expected a safetensors file, a PyTorch"),
        ("a.safetensors", b"<html><body>Sign in</body></html>", "/resolve/"),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "got a pointer of git-lfs"),
        ("a.pth", b"", "got an empty file, expected"),
        ("a.pth", b"\xff\xd8\xff\xe0\0\x10JFIF\0", "got an image, expected"),
        ("a.safetensors", b"\x89PNG\r\n\x1a\n" + b"\0" * 90, "got an image, expected"),
        ("a.pth", b"\0" * 600, "(600 bytes) is truncated or not a weight file"),
        ("a.pth", tar(), "got a tar archive"),
        ("a.npy", b"\x93NUMPY\x01\0", "got a single NumPy array"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 90, "got an HDF5 file, such as Keras writes"),
        ("a.keras", zipped("config.json", "model.weights.h5"), "got a zip archive without weights, expected"),
        ("a.pt", zipped("model/data.pkl", "model/constants.pkl"), "got a TorchScript archive"),
        ("a.pth.gz", b"\x1f\x8b\x08\0" + b"\0" * 90, "Unpack it"),
        ("a.gguf", b"GGUF\x03\0\0\0", "got a GGUF file"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b"}}', "split into several files"),
        ("config.json", b'{"architecture": "resnet50"}', "got JSON"),
    ],
)
def test_what_a_file_is(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert words in load_error(build("test_resnet"), tmp_path / name)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may read everything")
def test_files_and_folders_without_permission(tmp_path):
    path = tmp_path / "folder" / "model.safetensors"
    path.parent.mkdir()
    save_file({"a": np.zeros(1, np.float32)}, path)
    path.chmod(0)
    assert "cannot read the file: Permission denied. Check its permissions" in load_error(build("test_resnet"), path)
    path.parent.chmod(0)
    message = load_error(build("test_resnet"), path.parent)
    path.parent.chmod(0o700)
    assert "cannot read the folder: Permission denied. Check its permissions" in message


def test_an_address_is_not_a_file():
    message = load_error(build("test_resnet"), "https://example.org/model.pth")
    assert "no such weight file" in message
    assert "Download the file, and pass its path." in message


def test_very_long_names_are_shortened(tmp_path):
    save_file({"k" * 10_000: np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    message = load_error(build("test_resnet"), tmp_path / "model.safetensors")
    assert "1 unexpected (kkk" in message
    assert len(message) < 1000


def test_a_safetensors_file_whose_length_looks_like_json(tmp_path):
    """The first byte of the file is the lowest of the header's length, here that of ``{``."""
    for n in range(300):
        path = tmp_path / "model.safetensors"
        save_file({"a": np.zeros(1, np.float32)}, path, metadata={"x": "y" * n})
        if path.read_bytes()[:1] == b"{":
            break
    else:  # safetensors aligns its header, so the length is a multiple of eight; 0x7b is not
        header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(0x7B).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes()[:1] == b"{"
    assert files.open_weights(path).shapes == {"a": (1,)}


def test_a_file_with_metadata_alone(tmp_path):
    save_file({}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = load_error(build("test_resnet"), tmp_path / "model.safetensors")
    assert "The file contains no tensors" in message


def test_one_part_of_several(tmp_path):
    def change(tensors):
        for key in list(tensors)[20:]:
            del tensors[key]

    path = write(tmp_path / "model-00001-of-00002.safetensors", change=change)
    assert "The file is one of several parts" in load_error(build("test_resnet"), path)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
        (np.complex64, "C64"),
        (np.int8, "I8"),
        (np.bool_, "BOOL"),
    ],
)
def test_other_dtypes_are_an_error(dtype, name, tmp_path):
    def change(tensors):
        tensors["fc.weight"] = tensors["fc.weight"].astype(dtype)

    message = load_error(build("test_resnet"), write(tmp_path / "model.safetensors", change=change))
    assert f"got 1 tensors of other dtypes (fc.weight {name}), expected one of F64, F32, F16, BF16" in message


def test_an_empty_tensor_of_the_head(tmp_path):
    def change(tensors):
        tensors["fc.weight"], tensors["fc.bias"] = np.zeros((0, 192), np.float32), np.zeros(0, np.float32)

    message = load_error(build("test_resnet"), write(tmp_path / "model.safetensors", change=change), head="load")
    assert "fc.bias [0] in the file, [1000] in the model" in message


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "best.safetensors"])
def test_the_weight_file_of_a_folder(name, tmp_path):
    write(tmp_path / name)
    (tmp_path / "README.md").write_text("")
    assert files.find_file(tmp_path) == tmp_path / name
    assert_loads(tmp_path)


@pytest.mark.parametrize("name", ["best.pth", "weights.npz", "x.safetensors"])
def test_the_weight_file_of_another_trainer(name, tmp_path):
    """Its folder also has metrics and checkpoints, but is no workdir of jaxvision."""
    (tmp_path / name).touch()
    (tmp_path / "metrics.jsonl").touch()
    assert files.find_file(tmp_path) == tmp_path / name
    (tmp_path / "checkpoints").mkdir()
    assert files.find_file(tmp_path) == tmp_path / name


def test_the_preferred_file_of_a_folder(tmp_path):
    for name in ("other.safetensors", "pytorch_model.bin", "model.safetensors"):
        write(tmp_path / name)
    assert files.find_file(tmp_path) == tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["a.pth", "b.pth"],
            r"got a folder with 2 weight files \(a.pth, b.pth\), expected model.safetensors or a single",
        ),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], "split into several files"),
        (["_CHECKPOINT_METADATA", "manifest.ocdbt"], r"without weights \(_CHECKPOINT_METADATA, manifest.ocdbt\)"),
    ],
)
def test_a_folder_without_one_weight_file(names, words, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=words):
        files.open_weights(tmp_path)


@pytest.mark.timm
def test_unusual_tensors_of_torch(tmp_path):
    """Strides, shared memory, shared storage and parameters do not change the values."""
    import torch
    from support.weight_files import torch_state

    state = torch_state()
    state["fc.weight"] = state["fc.weight"].t().contiguous().t()  # transposed strides
    state["conv1.0.weight"] = state["conv1.0.weight"].to(memory_format=torch.channels_last)
    joined = torch.cat([state["bn1.weight"], state["bn1.bias"]])
    state["bn1.weight"], state["bn1.bias"] = joined.chunk(2)  # two views of one storage
    state["fc.bias"] = torch.nn.Parameter(state["fc.bias"])
    torch.save(state, tmp_path / "model.pth")
    assert not torch.load(tmp_path / "model.pth")["fc.weight"].is_contiguous()
    assert_loads(tmp_path / "model.pth")


@pytest.mark.timm
def test_tied_tensors_of_torch(tmp_path):
    import torch
    from support.weight_files import torch_state

    state = torch_state()
    state["layer1.0.bn1.weight"] = state["layer1.0.bn2.weight"]
    torch.save(state, tmp_path / "model.pth")
    got = arrays(timm.load_timm(abstract("test_resnet"), tmp_path / "model.pth"))
    np.testing.assert_array_equal(got["layer1.0.bn1.scale"], got["layer1.0.bn2.scale"])


@pytest.mark.timm
def test_tensors_of_torch_that_are_not_floating_point(tmp_path):
    import torch
    from support.weight_files import torch_state

    for change, words in [
        (lambda x: x.to(torch.complex64), "fc.weight torch.complex64"),
        (lambda x: x.to(torch.float8_e4m3fn), "fc.weight torch.float8_e4m3fn"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "fc.weight torch.qint8"),
        (lambda x: x.to_sparse(), "fc.weight is a sparse tensor"),
    ]:
        state = torch_state()
        with warnings.catch_warnings(action="ignore"):  # torch deprecates quantized tensors, but files contain them
            state["fc.weight"] = change(state["fc.weight"])
            torch.save(state, tmp_path / "model.pth")
        assert words in load_error(build("test_resnet"), tmp_path / "model.pth", head="load")
