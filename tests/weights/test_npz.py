"""NumPy archives of weights: what is read, and what is refused."""

from __future__ import annotations

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.weights import files


def npy(header: bytes) -> bytes:
    """Returns the start of a file of one array, with this header."""
    header = header.ljust(118) + b"\n"
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header


def zipped(name: str, content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name, content)
    return archive.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_with_their_dtypes(save, tmp_path):
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    arrays = {"a/b": x, "f16": x.astype(np.float16), "big": x.astype(">f4"), "order": np.asfortranarray(x)}
    arrays["bf16"] = x.astype(ml_dtypes.bfloat16)  # written as two bytes without a type
    save(tmp_path / "a.npz", **arrays, step=np.int32(7))
    file = files.open_weights(tmp_path / "a.npz")
    assert file.dtypes == {"a.b": "F32", "f16": "F16", "big": "F32", "order": "F32", "bf16": "BF16", "step": "int32"}
    assert file.shapes["a.b"] == (2, 3)
    assert file.shapes["step"] == ()
    for name, array in arrays.items():
        np.testing.assert_array_equal(
            file.tensor(name.replace("/", ".")),
            array.astype(file.tensor("a.b").dtype if name == "big" else array.dtype),
        )
        assert file.tensor(name.replace("/", ".")).dtype.isnative


def test_an_archive_is_found_in_a_folder(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(1, np.float32))
    assert files.find_file(tmp_path) == tmp_path / "a.npz"


def test_python_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"a\.npz: got the array 'x' of Python objects, expected numbers"):
        files.open_weights(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content",
    [
        zipped("x.npy", b"not an array"),
        zipped("x.npy", npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }") + b"\0" * 8),
        zipped("x.npy", npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), ")),
        zipped("x.npy", npy(b"__import__('os').getcwd()")),
    ],
)
def test_a_damaged_array_is_an_error(content, tmp_path):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"bytes\) is truncated or not a NumPy archive: "):
        files.open_weights(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_or_changed_archive_is_an_error(save, tmp_path):
    """Truncation at each byte, and each byte inverted: an error of one line, or arrays of the right shape."""
    content = io.BytesIO()
    save(content, x=np.arange(4, dtype=np.float32))
    whole = content.getvalue()
    cases = [whole[:n] for n in range(4, len(whole))]
    cases += [whole[:n] + bytes([whole[n] ^ 255]) + whole[n + 1 :] for n in range(len(whole))]
    path = tmp_path / "a.npz"
    errors = []
    for case in cases:
        path.write_bytes(case)
        try:
            file = files.open_weights(path)
            for name in file.shapes:
                file.tensor(name)
        except UserError as e:
            errors.append(str(e))
    assert len(errors) > len(whole)
    assert not any("\n" in error for error in errors)
