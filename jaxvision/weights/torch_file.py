"""PyTorch's file formats, read without PyTorch: the zip archive of 1.6 and later, and the legacy sequence of pickles.

Both hold the pickle of an object, whose tensors refer to storages, and the bytes of these storages. Reading runs no
code. The bytes of a tensor are mapped into memory and read on request; as by ``torch.load(mmap=True)``, they are not
compared with the archive's checksums.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxvision.errors import UserError, first_line
from jaxvision.weights.mapped import MappedFile
from jaxvision.weights.unpickle import Ignored, Unpickler

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_LOCAL_HEADER = 30  # bytes of a zip member's header, without its name and extra field
_MAX_ELEMENTS = 2**48
_MAX_DIMENSIONS = 32

#: Name of each dtype in torch -> bytes of an element.
ITEM_SIZES = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32", "complex32", "qint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "qint8", "quint8", "quint4x2", "quint2x4"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    "complex128": 16,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}


@dataclass(frozen=True, eq=False)
class _Dtype:
    """A dtype, or the class of the storages that have it."""

    name: str


@dataclass(eq=False)
class _Storage:
    """A range of bytes in the file.

    Attributes:
      dtype: of its elements.
      count: number of elements.
      start: position in the file; None until it is known.
    """

    dtype: str
    count: int
    start: int | None = None


@dataclass(frozen=True, eq=False)
class _View:
    """Elements `offset` to `offset + count` of a storage."""

    storage: _Storage
    offset: int
    count: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor in the file.

    Attributes:
      dtype: torch's name of the dtype, without ``torch.``.
      shape: its shape.
      strides: step along each axis, in elements.
      view: the part of a storage that holds it; None unless it is `dense`.
      offset: position of its first element in the view, in elements.
      layout: ``"dense"``, ``"sparse"``, or ``"meta"`` for a tensor without values.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    view: _View | None = None
    offset: int = 0
    layout: str = "dense"


class TorchFile:
    """An open PyTorch file.

    Args:
      path: the file.

    Attributes:
      content: the pickled object, whose tensors are `Tensor`. Mappings are dictionaries, and values without a
        meaning for weights are `Ignored`.

    Raises:
      UserError: the file is damaged, or it holds more than tensors and plain values.
    """

    def __init__(self, path: Path):
        self._is_swapped = False
        unpickler: Unpickler | None = None
        try:
            with path.open("rb") as file:
                self._mapped = MappedFile(file)
                if self._mapped.data[:2] == b"PK":
                    archive = _Archive(file, self._mapped.data)
                    self._is_swapped = archive.is_big_endian
                    unpickler = Unpickler(archive.pickle, _GLOBALS.get, archive.load_storage)
                    self.content = unpickler.load()
                else:
                    legacy = _Legacy()
                    unpickler = Unpickler(self._mapped.data, _GLOBALS.get, legacy.load_storage)
                    self.content = legacy.load(unpickler, self._mapped.data)
            if unpickler.refused:
                raise ValueError("it holds more than tensors")
        except Exception as e:  # reading arbitrary bytes raises arbitrary exceptions
            raise _reading_error(path, unpickler, e) from e

    def read(self, tensor: Tensor) -> np.ndarray:
        """Returns a dense tensor, as a view of the mapped file where possible.

        Raises:
          UserError: NumPy does not have its dtype.
        """
        dtype = _numpy_dtype(tensor.dtype)
        x = self._mapped.array(dtype, tensor.shape, self._range(tensor)[0], tensor.strides)
        if not self._is_swapped:
            return x
        part = {16: np.uint64, 8: np.uint32 if x.dtype.kind == "c" else np.uint64, 4: np.uint32, 2: np.uint16}
        integer = part.get(x.dtype.itemsize, np.uint8)
        return np.ascontiguousarray(x).view(integer).byteswap().view(dtype).reshape(x.shape)

    def forget(self, tensor: Tensor) -> None:
        """Releases the memory that reading a tensor took. A view of it stays valid."""
        self._mapped.forget(*self._range(tensor))

    def _range(self, tensor: Tensor) -> tuple[int, int]:
        view = tensor.view
        assert view is not None, f"a {tensor.layout} tensor has no values"
        assert view.storage.start is not None
        size = ITEM_SIZES[tensor.dtype]
        start = view.storage.start + view.offset * ITEM_SIZES[view.storage.dtype] + tensor.offset * size
        return start, start + size * _span(tensor.shape, tensor.strides)


def _numpy_dtype(name: str) -> np.dtype:
    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError as e:
        raise UserError(
            f"got a tensor of the dtype torch.{name}, which NumPy does not have. Convert it by x.float()."
        ) from e


def _reading_error(path: Path, unpickler: Unpickler | None, error: Exception) -> UserError:
    if unpickler is not None and unpickler.refused:
        names = ", ".join(name[:80] for name in sorted(set(unpickler.refused))[:3])
        reason = f"it holds more than tensors ({names}), and loading runs no code. Save the model's state_dict instead."
    else:
        reason = f"{first_line(error)}. Copy or download the file again."
    return UserError(f"{path}: cannot read this PyTorch pickle as weights: {reason}")


class _Archive:
    """The zip format: the members ``NAME/data.pkl``, ``NAME/data/KEY`` for each storage, and ``NAME/byteorder``.

    Args:
      file: the open file.
      data: its bytes.
    """

    def __init__(self, file: BinaryIO, data: Any):
        self._data = data
        if not zipfile.is_zipfile(file):  # its table of contents, which is at its end, is missing
            raise ValueError("it is truncated")
        with zipfile.ZipFile(file) as archive:
            members, end = archive.infolist(), archive.start_dir
        self._members = {member.filename: member for member in members}
        if len(self._members) < len(members):
            raise ValueError("it has two members of one name")
        for member in sorted(members, key=lambda member: member.header_offset, reverse=True):
            if sum(self._range(member)) > end:
                raise ValueError(f"its member {member.filename} overlaps another")
            end = member.header_offset
        pickles = [name for name in self._members if f"/{name}".endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} pickles")
        self._folder = pickles[0].removesuffix("data.pkl")
        self.pickle = self._read("data.pkl")
        order = self._read("byteorder") if f"{self._folder}byteorder" in self._members else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"it has the byte order {order[:20]!r}")
        self.is_big_endian = order == b"big"

    def _range(self, member: zipfile.ZipInfo) -> tuple[int, int]:
        """Returns where a member's bytes start, and their number."""
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError(f"its member {member.filename} is compressed or encrypted")
        if member.file_size != member.compress_size:
            raise ValueError(f"its member {member.filename} has two sizes")
        header = self._data[member.header_offset : member.header_offset + _LOCAL_HEADER]
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise ValueError(f"its member {member.filename} has no header")
        sizes = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return member.header_offset + _LOCAL_HEADER + sizes, member.file_size

    def _read(self, name: str) -> bytes:
        member = self._members[self._folder + name]
        start, size = self._range(member)
        data = self._data[start : start + size]
        if member.CRC not in (0, zlib.crc32(data)):  # 0: PyTorch was set to compute none
            raise ValueError(f"its member {member.filename} is damaged")
        return data

    def load_storage(self, identifier: Any) -> _View:
        kind, dtype, key, _, count = identifier
        storage = _new_storage(kind, dtype, key, count)
        member = self._members.get(f"{self._folder}data/{key}")
        if member is None:
            raise ValueError(f"it lacks the storage {key}")
        start, size = self._range(member)
        if size != count * ITEM_SIZES[storage.dtype]:
            raise ValueError(f"its storage {key} has {size:,} bytes, expected {count:,} of torch.{storage.dtype}")
        storage.start = start
        return _View(storage, 0, count)


class _Legacy:
    """The legacy format: five pickles, then for each storage its number of elements and its bytes.

    The pickles are a magic number, a version, facts on the machine, the object, and the keys of the storages.
    """

    def __init__(self) -> None:
        self._storages: dict[str, _Storage] = {}

    def load(self, unpickler: Unpickler, data: Any) -> Any:
        """Returns the object."""
        magic = unpickler.load()
        if magic != _LEGACY_MAGIC:
            raise ValueError("it does not start with PyTorch's magic number")
        if unpickler.load() != _LEGACY_VERSION:
            raise ValueError("it has another version of the format")
        unpickler.load()
        content = unpickler.load()
        keys = unpickler.load()
        if unpickler.refused:
            return content
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("it has no list of storages")
        if len(keys) != len(self._storages) or set(keys) != self._storages.keys():
            raise ValueError("its list of storages is not that of its tensors")
        position = unpickler.position
        for key in keys:
            storage = self._storages[key]
            count = int.from_bytes(data[position : position + 8], "little")
            storage.start = position + 8
            position = storage.start + storage.count * ITEM_SIZES[storage.dtype]
            if count != storage.count:
                raise ValueError(f"its storage {key} has {count:,} elements, expected {storage.count:,}")
            if position > len(data):
                raise ValueError(f"it is truncated in the storage {key}")
        return content

    def load_storage(self, identifier: Any) -> _View:
        kind, dtype, key, _, count, part = identifier
        storage = _new_storage(kind, dtype, key, count)
        known = self._storages.setdefault(key, storage)
        if (known.dtype, known.count) != (storage.dtype, storage.count):
            raise ValueError(f"its storage {key} has two dtypes or sizes")
        if part is None:
            return _View(known, 0, count)
        _, offset, size = part
        if not (_is_size(offset) and _is_size(size)) or offset + size > count:
            raise ValueError(f"a view of its storage {key} lies outside of it")
        return _View(known, offset, size)


def _new_storage(kind: Any, dtype: Any, key: Any, count: Any) -> _Storage:
    if kind != "storage" or not isinstance(dtype, _Dtype) or not isinstance(key, str) or not _is_size(count):
        raise ValueError("it refers to something other than a storage")
    return _Storage(dtype.name, count)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_ELEMENTS


def _sizes(values: Any) -> tuple[int, ...]:
    """Returns the shape or the strides of a tensor if they can be.

    Raises:
      ValueError: they are not a few non-negative integers.
    """
    if not isinstance(values, tuple) or len(values) > _MAX_DIMENSIONS or not all(map(_is_size, values)):
        raise ValueError("a tensor has a shape or strides other than non-negative integers")
    return values


def _shape(values: Any) -> tuple[int, ...]:
    if math.prod(max(n, 1) for n in _sizes(values)) > _MAX_ELEMENTS:
        raise ValueError("a tensor has too many elements")
    return values


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Returns how many elements lie between the first and the last one of a tensor, both included."""
    return 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _tensor(view: Any, offset: Any, shape: Any, strides: Any, dtype: str | None = None) -> Tensor:
    if not isinstance(view, _View) or not _is_size(offset):
        raise ValueError("a tensor has no storage")
    shape, strides = _shape(shape), _sizes(strides)
    if len(strides) != len(shape):
        raise ValueError("a tensor has more or fewer strides than dimensions")
    tensor = Tensor(dtype or view.storage.dtype, shape, strides, view, offset)
    end = (offset + _span(shape, strides)) * ITEM_SIZES[tensor.dtype]
    if 0 not in shape and end > view.count * ITEM_SIZES[view.storage.dtype]:
        raise ValueError("a tensor lies outside of its storage")
    return tensor


def _rebuild_tensor(view: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    return _tensor(view, offset, shape, strides)


def _rebuild_tensor_v2(
    view: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> Tensor:
    if metadata:
        raise ValueError("a tensor is stored as the negative or the conjugate of its values")
    return _tensor(view, offset, shape, strides)


def _rebuild_tensor_v3(
    view: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Tensor:
    if metadata:
        raise ValueError("a tensor is stored as the negative or the conjugate of its values")
    return _tensor(view, offset, shape, strides, dtype.name)


def _rebuild_qtensor(view: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Tensor:
    return _tensor(view, offset, shape, strides)


def _rebuild_sparse_tensor(layout: Any, data: Any) -> Tensor:
    shape = next(value for value in data if isinstance(value, tuple))
    return Tensor(data[1].dtype, _shape(shape), layout="sparse")


def _rebuild_meta_tensor(dtype: Any, shape: Any, strides: Any, requires_grad: Any) -> Tensor:
    return Tensor(dtype.name, _shape(shape), layout="meta")


def _rebuild_parameter(tensor: Any, *others: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError("a parameter has no tensor")
    return tensor


def _rebuild_from_type(function: Any, type_: Any, arguments: Any, state: Any) -> Tensor:
    if function not in _REBUILD.values():
        raise ValueError("a tensor is made by another function than PyTorch's")
    return function(*arguments)


def _ignore(*arguments: Any) -> Ignored:
    return Ignored()


_REBUILD: Mapping[str, Callable[..., Tensor]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor_v2,
    "_rebuild_tensor_v3": _rebuild_tensor_v3,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
    "_rebuild_qtensor": _rebuild_qtensor,
    "_rebuild_sparse_tensor": _rebuild_sparse_tensor,
    "_rebuild_meta_tensor_no_storage": _rebuild_meta_tensor,
    "_rebuild_device_tensor_from_cpu_tensor": _rebuild_parameter,
}
#: Everything that a pickle may name. No function here does more than to check and keep its arguments.
_GLOBALS: Mapping[str, Any] = {
    **{f"torch._utils.{name}": function for name, function in _REBUILD.items()},
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.nn.parameter.Parameter": _rebuild_parameter,
    "torch.Tensor": Ignored(),
    **{f"torch.{name}": _Dtype(name) for name in ITEM_SIZES},
    **{f"{module}.{name}": _Dtype(dtype) for module in ("torch", "torch.cuda", "torch.storage")
       for name, dtype in _STORAGES.items()},
    "torch.Size": _sizes,
    "collections.OrderedDict": dict,
    "collections.Counter": dict,
    **dict.fromkeys(
        (
            "torch.device",
            "torch.serialization._get_layout",
            "torch.per_tensor_affine",
            "torch.per_tensor_symmetric",
            "torch.per_channel_affine",
            "torch.per_channel_symmetric",
            "torch.per_channel_affine_float_qparams",
            "argparse.Namespace",
            "_codecs.encode",
            "builtins.bytearray",
            "builtins.set",
            "builtins.complex",
            "numpy.dtype",
            *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),  # NumPy 1 and 2
        ),
        _ignore,
    ),
}  # fmt: skip
