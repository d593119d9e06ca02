"""Named tensors in a file, looked at before they are read: safetensors, and PyTorch's pickles where torch is there."""

from __future__ import annotations

import argparse
import json
import logging
import mmap
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxvision.errors import UserError, missing_package_error

logger = logging.getLogger(__name__)

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# What stands before a tensor's name when the model was saved in the wrapper of torch.compile or of DDP, or in both.
_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")
# Where a checkpoint keeps its weights, the best first: the average of timm's trainer, the plain weights, I-JEPA's.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "encoder")


class TensorFile:
    """Names, shapes and types of the tensors in a file. None of them is read yet.

    Attributes:
      shapes: of the tensors by name, without what wrapped the model when it was saved (``module.``).
      dtypes: as safetensors calls them, such as ``"F32"``.
      metadata: what else the file says, nothing if it is a pickle.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def tensor(self, name: str) -> np.ndarray:
        """Returns a floating point tensor. It may be a view of the file, whose memory is filled where it is read."""

    def forget(self, name: str) -> None:
        """Gives the memory back that reading the tensor took; a view of it stays valid."""


class _Safetensors(TensorFile):
    """A safetensors file, mapped into memory."""

    def __init__(self, path: Path):
        with safe_open(path, framework="np"):
            pass  # raises unless the header is sound and every tensor lies within the file
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.metadata = header.pop("__metadata__", {})
        rows = _unwrapped(header, path)
        self.shapes = {name: tuple(row["shape"]) for name, row in rows.items()}
        self.dtypes = {name: row["dtype"] for name, row in rows.items()}
        self._ranges = {name: [8 + length + offset for offset in row["data_offsets"]] for name, row in rows.items()}

    def tensor(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        count = int(np.prod(shape, dtype=np.int64))
        if not count:
            return np.empty(shape, FLOATS[self.dtypes[name]])
        return np.frombuffer(self._bytes, FLOATS[self.dtypes[name]], count, self._ranges[name][0]).reshape(shape)

    def forget(self, name: str) -> None:
        start, end = self._ranges[name]
        start -= start % mmap.PAGESIZE
        if end > start and hasattr(mmap, "MADV_DONTNEED"):
            # Pages of the file that were read count as this process's memory until it says that it needs them no more.
            self._bytes.madvise(mmap.MADV_DONTNEED, start, end - start)


class _Pickle(TensorFile):
    """PyTorch's own format, read by torch in the mode that runs no code."""

    def __init__(self, path: Path):
        try:
            import torch
        except ImportError as e:
            raise missing_package_error("torch", f"{path} is a PyTorch pickle; reading it", "torch") from e
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):  # timm's trainer saves its flags so
                try:
                    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                except RuntimeError:  # one of before PyTorch 1.6 cannot be mapped
                    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # whatever unpickling bytes of no meaning may come upon
            raise UserError(f"{path} is a PyTorch pickle that cannot be read as weights: {_why(path, e)}") from e
        state = _unwrapped(_state(checkpoint, path), path)
        self._tensors: dict[str, Any] = {name: x for name, x in state.items() if isinstance(x, torch.Tensor)}
        if not self._tensors:
            raise UserError(f"{path} is a PyTorch pickle without weights: no state_dict is in it")
        self.shapes = {name: tuple(x.shape) for name, x in self._tensors.items()}
        odd = [name for name, x in self._tensors.items() if x.layout is not torch.strided]
        if odd:
            raise UserError(f"{path}: {odd[0]} is a sparse tensor; save it dense, x.to_dense()")
        names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
        self.dtypes = {name: names.get(x.dtype, str(x.dtype)) for name, x in self._tensors.items()}
        self._int16 = torch.int16

    def tensor(self, name: str) -> np.ndarray:
        x = self._tensors[name].detach()
        if self.dtypes[name] == "BF16":  # which numpy knows only by ml_dtypes, and torch does not know that
            return x.contiguous().view(self._int16).numpy().view(ml_dtypes.bfloat16)
        return x.numpy()

    def forget(self, name: str) -> None:
        del self._tensors[name]


def _why(path: Path, error: Exception) -> str:
    import torch

    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        others = []
    if others:
        return f"it holds more than tensors ({', '.join(sorted(others)[:3])}), and code is not run; save its state_dict"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _state(checkpoint: Any, path: Path) -> Mapping[str, Any]:
    """Returns the state_dict in a checkpoint: of the average where there is one, as timm prefers it."""
    found = checkpoint
    while isinstance(found, Mapping):
        key = next((key for key in _NESTED if isinstance(found.get(key), Mapping)), None)
        if key is None:
            return found
        logger.info("%s: taking %r", path, key)
        found = found[key]
    raise UserError(f"{path} is a PyTorch pickle of a {type(checkpoint).__name__}, not of a state_dict")


def _unwrapped(tensors: Mapping[str, Any], path: Path) -> dict[str, Any]:
    found = {}
    for key, value in tensors.items():
        name = str(key)
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        if name in found:
            raise UserError(f"{path} holds the tensor {name!r} twice, once as {key!r}")
        found[name] = value
    return found


@contextmanager
def open_tensors(path: str | Path) -> Iterator[TensorFile]:
    """Opens a file of weights.

    Args:
      path: a safetensors file; or PyTorch's pickle of a state_dict, or of a checkpoint that nests one as timm's trainer
        does (``state_dict_ema`` is taken before ``state_dict``). A folder stands for the ``model.safetensors`` in it.

    Raises:
      UserError: no such file, one that is cut short or of another format, or a pickle that holds more than tensors.

    Example:
      >>> import tempfile
      >>> from safetensors.numpy import save_file
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_file({"module.fc.bias": np.ones(3, np.float32)}, f"{folder}/model.safetensors")
      ...     with open_tensors(folder) as file:
      ...         print(file.shapes, file.dtypes, file.tensor("fc.bias"))
      {'fc.bias': (3,)} {'fc.bias': 'F32'} [1. 1. 1.]
    """
    path = find(path)
    try:
        with path.open("rb") as raw:
            start = raw.read(2)
        pickled = start == b"PK" or (start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"))
        if pickled and path.suffix == ".safetensors":
            raise UserError(
                f"{path} is not what its name says but a PyTorch pickle; if you trust where it comes from, call it "
                f"{path.with_suffix('.pth').name}: then it is read through torch, without running code"
            )
        file = _Pickle(path) if pickled else _Safetensors(path)
    except (SafetensorError, OSError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        size = f"{path.stat().st_size:,} bytes"
        raise UserError(f"{path} ({size}) is truncated or not a safetensors file: {e}") from e
    yield file


def find(path: str | Path) -> Path:
    """Returns the path of a weight file that is there; a folder stands for the ``model.safetensors`` in it.

    Raises:
      UserError: nothing is there.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            path = path / "model.safetensors"
        there = path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero in it
        there = False
    if not there:
        raise UserError(f"no such weight file: {str(path)[:300]!r}")  # quoted: it may be no more than a strange string
    return path


def some(items: Iterable[str], n: int = 3) -> str:
    """Returns the first of many names, and how many more there are.

    >>> some("abcde")
    'a, b, c, and 2 more'
    """
    items = list(items)
    rest = f", and {len(items) - n} more" if len(items) > n else ""
    return ", ".join(items[:n]) + rest
