"""NumPy archives (``.npz``) of weights, as Google's libraries write them."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxvision.errors import UserError, first_line
from jaxvision.weights.mapped import MappedFile
from jaxvision.weights.weight_file import FLOATS, WeightFile

_NAMES = {np.dtype(dtype): name for name, dtype in FLOATS.items()}
# NumPy does not know bfloat16 and writes it as 2 bytes without a type.
_RAW_BFLOAT16 = np.dtype("V2")
# What zipfile and NumPy raise for a damaged archive, or a damaged header of an array, which is a Python literal.
_DAMAGES = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class _Array(NamedTuple):
    """An array in an archive.

    Attributes:
      member: its name there.
      dtype: NumPy's dtype.
      is_fortran: whether the first axis is contiguous.
      start: position of its first element in the file, in bytes; None if it is compressed.
    """

    member: str
    dtype: np.dtype
    is_fortran: bool
    start: int | None


class NpzFile(WeightFile):
    """A NumPy archive, mapped into memory unless it is compressed. Its names have dots instead of slashes.

    Args:
      path: the file.

    Raises:
      UserError: the file is damaged, or holds Python objects, which are not read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._arrays: dict[str, _Array] = {}
        shapes, dtypes = {}, {}
        with self._reading(), path.open("rb") as file, zipfile.ZipFile(file) as archive:
            self._mapped = MappedFile(file)
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy").replace("/", ".")
                with archive.open(member) as opened:
                    shape, is_fortran, dtype = _read_header(opened)
                    header = opened.tell()
                if dtype.hasobject:
                    raise UserError(
                        f"{path}: got the array {name!r} of Python objects, expected numbers. Reading it would run "
                        "code, so save the arrays of numbers alone."
                    )
                if header + math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(f"the array {name!r} is longer than its part of the archive")
                is_stored = member.compress_type == zipfile.ZIP_STORED
                start = _find_data(file, member) + header if is_stored else None
                self._arrays[name] = _Array(member.filename, dtype, is_fortran, start)
                shapes[name], dtypes[name] = shape, _NAMES.get(_native(dtype), str(dtype))
        self.shapes, self.dtypes = shapes, dtypes

    def tensor(self, name: str) -> np.ndarray:
        array, shape = self._arrays[name], self.shapes[name]
        with self._reading():
            if array.start is not None:
                value = self._mapped.array(array.dtype, shape[::-1] if array.is_fortran else shape, array.start)
                value = value.T if array.is_fortran else value
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(array.member) as opened:
                    value = np.lib.format.read_array(opened, allow_pickle=False)
        native = _native(array.dtype)
        return value.view(native) if array.dtype == _RAW_BFLOAT16 else value.astype(native, copy=False)

    def forget(self, name: str) -> None:
        array = self._arrays[name]
        if array.start is not None:
            self._mapped.forget(array.start, array.start + math.prod(self.shapes[name]) * array.dtype.itemsize)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except _DAMAGES as e:
            raise UserError(
                f"{self.path} ({self.path.stat().st_size:,} bytes) is truncated or not a NumPy archive: "
                f"{first_line(e)}. Copy or download the file again."
            ) from e


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns the shape, whether the first axis is contiguous, and the dtype of the ``.npy`` file at its start."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _find_data(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Returns the position of a member's data, which follows a header with two fields of variable length."""
    file.seek(member.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    return member.header_offset + 30 + name + extra


def _native(dtype: np.dtype) -> np.dtype:
    """Returns a dtype in the byte order of this machine; bfloat16 for two bytes without a type."""
    return np.dtype(ml_dtypes.bfloat16) if dtype == _RAW_BFLOAT16 else dtype.newbyteorder("=")
