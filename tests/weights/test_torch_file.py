"""PyTorch's file formats, read without PyTorch: values, damaged files and hostile ones.

`tests/golden/make_pickles.py` wrote the files with PyTorch.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.paths import ROOT

from jaxvision.errors import UserError
from jaxvision.weights import files

PICKLES = ROOT / "tests" / "golden" / "pickles"
FORMATS = ["zip.pth", "legacy.pth"]


def expected() -> dict[str, np.ndarray]:
    x = np.arange(24, dtype=np.float32).reshape(4, 6) / 8
    return {
        "float32": x,
        "float64": x.astype(np.float64),
        "float16": x.astype(np.float16),
        "bfloat16": x.astype(ml_dtypes.bfloat16),
        "transposed": x.T,
        "strided": x[1:3, ::2],
        "expanded": np.zeros((3, 2), np.float32),
        "parameter": x + 1,
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.asarray(7),
        "int8": np.arange(3, dtype=np.int8),
        "bool": x > 1,
        "complex64": x.astype(np.complex64),
    }


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns every tensor of a file, after checking its shape."""
    file = files.open_weights(path)
    tensors = {}
    for name, shape in file.shapes.items():
        tensors[name] = file.tensor(name).copy()
        file.forget(name)
        assert tensors[name].shape == shape
    return tensors


def error(path: Path, data: bytes | None = None) -> str:
    """Returns the message of the error that a file raises."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError) as found:
        read(path)
    message = str(found.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_of_every_kind(name):
    tensors = read(PICKLES / name)
    assert list(tensors) == list(expected())
    for key, value in expected().items():
        assert tensors[key].dtype == value.dtype, key
        np.testing.assert_array_equal(tensors[key], value, err_msg=key)
    dtypes = files.open_weights(PICKLES / name).dtypes
    assert [dtypes[key] for key in ("float64", "bfloat16", "int8")] == ["F64", "BF16", "torch.int8"]


def test_another_protocol():
    tensors = read(PICKLES / "protocol5.pth")
    np.testing.assert_array_equal(tensors["a"], expected()["float32"])
    np.testing.assert_array_equal(tensors["uint16"], np.arange(3, dtype=np.uint16))


def test_the_weights_of_a_checkpoint(caplog):
    """Beside them are an optimizer's state, flags, a set and a device."""
    with caplog.at_level("INFO", "jaxvision"):
        tensors = read(PICKLES / "checkpoint.pth.tar")
    np.testing.assert_array_equal(tensors["weight"], np.full((2, 3), 0.5))
    np.testing.assert_array_equal(tensors["bias"], np.full(2, 0.25))
    assert caplog.messages == [f"{PICKLES / 'checkpoint.pth.tar'}: loading the entry 'state_dict'"]


def test_torch_is_not_imported():
    code = f"from jaxvision.weights import files; import sys; files.open_weights({str(PICKLES / 'zip.pth')!r})"
    code += "; assert not {'torch', 'jaxvision.train'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_big_endian_files(tmp_path):
    """PyTorch on a big-endian machine writes the bytes of each element in the other order, and says so."""
    archive = zipfile.ZipFile(PICKLES / "zip.pth")
    sizes = dict(enumerate([4, 8, 2, 2, 4, 4, 8, 1, 1, 4]))  # bytes of the numbers of each storage
    with zipfile.ZipFile(tmp_path / "big.pth", "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name == "zip/byteorder":
                data = b"big"
            elif name.startswith("zip/data/"):
                data = np.frombuffer(data, f"u{sizes[int(Path(name).name)]}").byteswap().tobytes()
            copy.writestr(name, data)
    tensors = read(tmp_path / "big.pth")
    for key, value in expected().items():
        np.testing.assert_array_equal(tensors[key], value, err_msg=key)


@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files(name, step, tmp_path):
    data = (PICKLES / name).read_bytes()
    for n in range(0, len(data), step):
        error(tmp_path / "model.pth", data[:n])


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bits(name, count, tmp_path):
    """Either the file is refused, or all of its tensors can be read."""
    data, path, refused = (PICKLES / name).read_bytes(), tmp_path / "model.pth", []
    rng = np.random.default_rng(0)
    for _ in range(count):
        damaged = bytearray(data)
        for position in rng.integers(len(data), size=rng.integers(1, 4)):
            damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read(path)
        except UserError as e:
            refused.append(str(e))
    assert 0 < len(refused) < count
    assert not any("\n" in message for message in refused)


def legacy(content: bytes, keys: Any = (), storages: bytes = b"") -> bytes:
    """Returns a legacy file with the opcodes of the object."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    head = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    return head + b"\x80\x02" + content + b"." + pickle.dumps(list(keys), protocol=2) + storages


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def put(name: str) -> bytes:
    """Returns the opcodes of a call of this name with a path; if it runs, a folder is created."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + text("FOLDER") + b"\x85R"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (put("os.mkdir"), "os.mkdir"),
        (put("posix.mkdir"), "posix.mkdir"),
        (put("nt.system"), "nt.system"),
        (put("builtins.eval"), "builtins.eval"),
        (put("__builtin__.exec"), "builtins.exec"),
        (put("torch.storage os.system"), "torch.storage os.system"),
        (b"ctorch\nstorage.os.mkdir\n" + text("FOLDER") + b"\x85R", "torch.storage.os.mkdir"),
        (b"ccollections\nOrderedDict.__init__\n)R", "collections.OrderedDict.__init__"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n", "torch._utils._rebuild_tensor_v2.__globals__"),
        (b"ctorch\nload\n" + text("FOLDER") + b"\x85R", "torch.load"),
        (text("os") + text("mkdir") + b"\x93" + text("FOLDER") + b"\x85R", "os.mkdir"),
        (b"cos\nmkdir\n" + text("FOLDER") + b"\x85\x81", "os.mkdir"),
        (b"cos\nmkdir\n" + text("FOLDER") + b"\x85}\x92", "os.mkdir"),
        (b"cmine\nModel\n)\x81}" + text("weight") + b"K\x01sb", "mine.Model"),
        (b"cmine\nList\n)\x81K\x01a", "mine.List"),
        (b"cmine\nDict\n)\x81(K\x01K\x02u", "mine.Dict"),
        (b"}cmine\nKey\n)RK\x01s", "mine.Key"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(cos\nmkdir\n)RK\x00)))Nt)R", "os.mkdir"),
    ],
)
def test_functions_are_refused_by_name(content, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrapped in (content, b"}" + text("state_dict") + content + b"s", b"(" + content + b"l"):
        message = error(tmp_path / "model.pth", legacy(wrapped))
        assert f"it holds more than tensors ({name}), and loading runs no code. " in message
        assert message.endswith("Save the model's state_dict instead.")
    assert not (tmp_path / "FOLDER").exists()


STORAGE = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")


def tensor(storage: bytes = STORAGE + b"K\x06N", offset=b"K\x00", shape=b"K\x02K\x03\x86", strides=b"K\x03K\x01\x86"):
    """Returns the opcodes of a tensor."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + offset + shape + strides + b"\x89}tR"


def state(content: bytes) -> bytes:
    return b"}" + text("a") + content + b"s"


BYTES = struct.pack("<q", 6) + np.arange(6, dtype=np.float32).tobytes()


def test_a_file_made_by_hand(tmp_path):
    """The hostile files below are changes of it. It is refused when it is truncated at any byte."""
    data, path = legacy(state(tensor()), ["0"], BYTES), tmp_path / "model.pth"
    path.write_bytes(data)
    np.testing.assert_array_equal(read(path)["a"], np.arange(6.0).reshape(2, 3))
    for n in range(len(data)):
        error(path, data[:n])


HUGE = b"\x8a\x06" + struct.pack("<q", 2**46)[:6]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tensor(shape=b"K\x03K\x03\x86"), "lies outside of its storage"),
        (tensor(offset=b"K\x01"), "lies outside of its storage"),
        (tensor(offset=b"J\xff\xff\xff\xff"), "has no storage"),
        (tensor(strides=b"J\xff\xff\xff\xffK\x01\x86"), "non-negative integers"),
        (tensor(strides=b"K\x01\x85"), "more or fewer strides"),
        (tensor(shape=HUGE + HUGE + b"\x86", strides=b"K\x00K\x00\x86"), "too many elements"),
        (tensor(shape=b"(" + 99 * b"K\x01" + b"t"), "non-negative integers"),
        (tensor(shape=text("ab")), "non-negative integers"),
        (tensor(STORAGE + HUGE + b"N"), "6 elements, expected 70,368,744,177,664"),
        (tensor(STORAGE + b"K\x05N"), "lies outside of its storage"),
        (tensor(STORAGE + b"K\x06" + text("1") + b"K\x04K\x06\x87"), "lies outside of it"),
        (tensor(b"K\x01K\x02K\x03K\x04K\x06N"), "something other than a storage"),
        (tensor(text("module") + STORAGE[12:] + b"K\x06N"), "something other than a storage"),
        (tensor(b""), "cannot read"),
        (b"K\x01Q", "cannot read"),
        (b"NQ", "cannot read"),
        (tensor().replace(b"FloatStorage", b"DoubleStorage"), "is truncated in the storage 0"),
        (b"\x82\x01", "the opcode"),
        (b"\x83\x01\x02", "the opcode"),
        (b"P0\n", "the opcode"),
        (b"I12\n", "the opcode"),
        (b"K\x01K\x02\x93", "something other than a string"),
        (b"N" + text("mkdir") + b"\x93", "something other than a string"),
        (text("a") * 2 + b"}b", "sets the state of a str"),
        (b"]}" + text("__class__") + b"Nsb", "sets the state of a list"),
        (b"K\x05)R", "calls a int"),
        (text("os.system") + text("ls") + b"\x85R", "calls a str"),
        (b"ccollections\nOrderedDict\nNR", "without a short tuple"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nN)NtR", "another function"),
        (b"h\x07", "cannot read"),
        (b"j\xff\xff\xff\x7f", "cannot read"),
        (b"00", "cannot read"),
        (b"t", "a mark"),
        (b"Ks", "cannot read"),
        (b"}]K\x01s", "a key of the type list"),
        (b"\x8b\xff\xff\xff\x7f", "an integer of 2,147,483,647 bytes"),
        (b"B\xff\xff\xff\xff", "is truncated"),
        (b"\x8d" + b"\xff" * 8, "is truncated"),
        (b"\x8e" + b"\xff" * 7 + b"\x7f", "is truncated"),
        (b"\x80\x09", "the protocol 9"),
        (b"\x95" + b"\xff" * 8, "cannot read"),
        (b"c" + b"a" * 2000 + b"\n", "is truncated"),
    ],
)
def test_hostile_pickles(content, words, tmp_path):
    for wrapped in (content, state(content)):
        assert words in error(tmp_path / "model.pth", legacy(wrapped, ["0"], BYTES))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"]", "a list"),
        (b"K\x01", "a int"),
        (tensor(), "a Tensor"),
        (b"cargparse\nNamespace\n)\x81}b", "a plain value"),
        (b"ccollections\nCounter\n)R", "without weights"),
    ],
)
def test_files_without_weights(content, words, tmp_path):
    keys, data = (["0"], BYTES) if content == tensor() else ([], b"")
    assert words in error(tmp_path / "model.pth", legacy(content, keys, data))


def nested(n: int) -> bytes:
    """Returns the opcodes of a tuple in a tuple, n times."""
    return b")" + n * b"\x85"


def bombs() -> dict[str, bytes]:
    colliding = b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(1, 60_000))
    doubled = b"]q\x00" + b"".join(b"(" + 10 * b"h\x00" + b"lq\x00" for _ in range(40))
    chain = b"}" + 20_000 * (text("model") + b"}") + 20_000 * b"s"
    copies = (
        b"("
        + b"".join(text(str(i)) + b"N" for i in range(50_000))
        + b"dq\x00"
        + 20_000 * b"ccollections\nOrderedDict\nh\x00\x85R0"
    )
    return {
        "a key of nested tuples": b"}" + nested(200_000) + b"Ns",
        "deeply nested tuples": nested(200_000),
        "deeply nested lists": 200_000 * b"]" + 199_999 * b"a",
        "keys of equal hashes": b"}(" + colliding + b"u",
        "lists of lists": doubled,
        "a large memo": b"]r\xff\xff\xff\x7f",
        "a chain of entries": chain,
        "many copies": copies,
        "many marks": 200_000 * b"(",
        "duplicates": b"N" + 200_000 * b"2",
        "many names": 100_000 * b"cos\nsystem\n0" + b"N",
    }


@pytest.mark.parametrize("kind", bombs())
def test_bombs(kind, tmp_path):
    start = time.monotonic()
    error(tmp_path / "model.pth", legacy(bombs()[kind]))
    assert time.monotonic() - start < 60


def test_storages_that_disagree_with_the_list(tmp_path):
    for keys, data, words in [
        ([], BYTES, "not that of its tensors"),
        (["1"], BYTES, "not that of its tensors"),
        (["0", "0"], 2 * BYTES, "not that of its tensors"),
        ([["0"]], BYTES, "no list of storages"),
        (["0"], struct.pack("<q", 7) + BYTES[8:], "7 elements, expected 6"),
        (["0"], struct.pack("<q", -1) + BYTES[8:], "elements, expected 6"),
        (["0"], BYTES[:-1], "is truncated in the storage 0"),
        (["0"], b"", "0 elements, expected 6"),
    ]:
        assert words in error(tmp_path / "model.pth", legacy(state(tensor()), keys, data))


def archive(path: Path, change: Callable[[dict[str, Any]], None] = lambda members: None, **options: Any) -> Path:
    """Writes a zip file with the tensor of `tensor`, whose members `change` may edit."""
    content = b"\x80\x02" + state(tensor(STORAGE + b"K\x06")) + b"."
    members = {"x/data.pkl": content, "x/byteorder": b"little", "x/data/0": BYTES[8:]}
    change(members)
    with zipfile.ZipFile(path, "w", **options) as written:
        for name, data in members.items():
            written.writestr(name, data)
    return path


def test_an_archive_made_by_hand(tmp_path):
    """The hostile archives below are changes of it. It is refused when it is truncated at any byte."""
    path = archive(tmp_path / "model.pth")
    np.testing.assert_array_equal(read(path)["a"], np.arange(6.0).reshape(2, 3))
    data = path.read_bytes()
    for n in range(len(data)):
        error(path, data[:n])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda members: members.pop("x/data/0"), "it lacks the storage 0"),
        (lambda members: members.update({"x/data/0": BYTES}), "has 32 bytes, expected 6 of torch.float32"),
        (lambda members: members.update({"x/data/0": b""}), "has 0 bytes"),
        (lambda members: members.update({"y/data.pkl": b"N."}), "it has 2 pickles"),
        (lambda members: members.update({"x/byteorder": b"middle"}), "the byte order"),
        (lambda members: members.update({"../data/0": members.pop("x/data/0")}), "it lacks the storage 0"),
        (lambda members: members.update({"x/data.pkl": put("os.mkdir") + b"."}), "more than tensors (os.mkdir)"),
        (lambda members: members.update({"x/data.pkl": b""}), "is truncated"),
    ],
)
def test_hostile_archives(change, words, tmp_path):
    assert words in error(archive(tmp_path / "model.pth", change))


def test_members_that_cannot_be_mapped(tmp_path):
    path = tmp_path / "model.pth"
    assert "is compressed or encrypted" in error(archive(path, compression=zipfile.ZIP_DEFLATED))
    data = bytearray(archive(path).read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # that of the storage, the last member
    data[entry + 8] |= 1
    assert "is compressed or encrypted" in error(path, bytes(data))
    data = bytearray(archive(path).read_bytes())
    struct.pack_into("<I", data, entry + 42, 0)  # the position of the first member
    assert "overlaps another" in error(path, bytes(data))
    struct.pack_into("<I", data, entry + 42, 20)
    assert "cannot read this PyTorch pickle" in error(path, bytes(data))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(archive(path), "a") as written:
        written.writestr("x/data/0", BYTES[8:])
    assert "two members of one name" in error(path)
    data = bytearray(archive(path).read_bytes())
    data[data.index(b"FloatStorage")] ^= 1
    assert "data.pkl is damaged" in error(path, bytes(data))


def test_a_tensor_of_a_large_file_is_read_alone(tmp_path):
    """The file is sparse on the disk: 64 GiB, more than the memory of a small machine."""
    count = 2**34
    size = b"\x8a\x05" + count.to_bytes(5, "little")
    content = tensor(STORAGE + size + b"N", offset=b"\x8a\x05" + (count - 6).to_bytes(5, "little"))
    head = legacy(state(content), ["0"], struct.pack("<q", count))
    path = tmp_path / "model.pth"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 4 * count)
        file.seek(len(head) + 4 * (count - 6))
        file.write(BYTES[8:])
    if os.stat(path).st_blocks * 512 > 2**20:
        pytest.skip("this file system has no sparse files")
    np.testing.assert_array_equal(read(path)["a"], np.arange(6.0).reshape(2, 3))


@pytest.mark.timm
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_values_are_those_of_torch_load(is_zip, protocol, tmp_path):
    import torch

    torch.manual_seed(0)
    path = tmp_path / "model.pth"
    x = torch.randn(5, 4, 3)
    base = torch.randn(100)
    tensors = OrderedDict(
        a=x,
        permuted=x.permute(2, 0, 1),
        flipped_view=x[1:, ::2].transpose(0, 1),
        shared_1=base[10:20],
        shared_2=base[15:25].reshape(2, 5),
        diagonal=torch.randn(4, 4).diagonal(),
        parameter=torch.nn.Parameter(x, requires_grad=False),
        attribute=torch.nn.Parameter(x + 1),
        buffer=torch.nn.Buffer(x + 2),
        none=torch.randn(3, 0),
        integer=torch.arange(5),
        half=x.half(),
    )
    tensors["attribute"].tag = "mine"
    for dtype in (torch.bfloat16, torch.float64, torch.uint8, torch.int16, torch.int32, torch.bool, torch.complex128):
        tensors[str(dtype)] = x.to(dtype)
    torch.save(tensors, path, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
    ours = read(path)
    theirs = torch.load(path, weights_only=False)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        value = value.detach()
        if value.dtype == torch.bfloat16:
            value, ours[name] = value.float(), ours[name].astype(np.float32)
        np.testing.assert_array_equal(ours[name], value.numpy(), err_msg=name)


@pytest.mark.timm
def test_files_without_checksums(tmp_path):
    import torch

    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3.0)}, tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    np.testing.assert_array_equal(read(tmp_path / "model.pth")["a"], np.arange(3.0))
