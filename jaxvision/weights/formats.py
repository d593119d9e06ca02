"""Which format a file has, by its content: weights, or one of the other things that are saved under such names."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO, Literal

from jaxvision.errors import UserError

_WEB_PAGE = (
    "a web page",
    "Download the file itself: an address on the hub contains /resolve/ instead of /blob/, and a private repository "
    "needs HF_TOKEN",
)
_KERAS = ("an HDF5 file, such as Keras writes", "There is no converter for it; use timm's weights of this architecture")
_NUMPY = ("a single NumPy array", "Pass a NumPy archive (.npz) of all arrays of the model")
_IMAGE = ("an image", "Check the order of the arguments")
_TAR = (
    "a tar archive",
    "Unpack it. If PyTorch before 0.1.10 wrote it, load it there and save it again",
)
# How a file starts -> (what it is, what to do).
_OTHERS = {
    b"<!doctype": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"<?xml": _WEB_PAGE,
    b"version https://git-lfs": ("a pointer of git-lfs", "Fetch the file itself: git lfs pull"),
    b"\x89hdf": _KERAS,
    b"\x93numpy": _NUMPY,
    b"\x1f\x8b": ("a compressed file", "Unpack it: gunzip"),
    b"\x89png": _IMAGE,
    b"\xff\xd8\xff": _IMAGE,
    b"gguf": ("a GGUF file of a language model", "Use a safetensors file of this architecture"),
}


def recognize(path: Path, file: BinaryIO) -> Literal["npz", "pickle", "safetensors"]:
    """Returns the format of a weight file; ``"safetensors"`` also for a file of unknown format.

    Args:
      path: the file.
      file: the same file, open at its start, where it is left.

    Raises:
      UserError: the file has another format, which the message names.
      OSError: the file cannot be read.
    """
    start = file.read(512)
    file.seek(0)
    if not start:
        raise _format_error(path, "an empty file", "Copy or download the file again")
    if start[:2] == b"PK":
        return _recognize_zip(path, file)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    text = start.lstrip().lower()
    for magic, (what, fix) in _OTHERS.items():
        if text.startswith(magic):
            raise _format_error(path, what, fix)
    if start[257:262] == b"ustar":
        raise _format_error(path, *_TAR)
    # The length at the start of a safetensors file has a zero byte.
    if text.startswith(b"{") and b"\0" not in start[:8]:
        raise sharded_error(path) if path.name.endswith(".index.json") else _format_error(path, "JSON", "Pass weights")
    return "safetensors"


def _recognize_zip(path: Path, file: BinaryIO) -> Literal["npz", "pickle"]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except Exception:  # for damaged archives it raises many exceptions
        return "pickle"  # the reader explains the damage
    if "constants.pkl" in names:
        raise _format_error(
            path,
            "a TorchScript archive, such as OpenAI's CLIP",
            "Save its state_dict in PyTorch: torch.save(torch.jit.load(FILE).state_dict(), 'model.pth')",
        )
    if "data.pkl" in names:
        return "pickle"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    raise _format_error(path, "a zip archive without weights", "If it contains a weight file, unpack it")


def _format_error(path: Path, what: str, fix: str) -> UserError:
    return UserError(f"{path}: got {what}, expected a safetensors file, a PyTorch pickle or a NumPy archive. {fix}.")


def sharded_error(path: Path) -> UserError:
    """Returns the error for weights that are split into several files."""
    return UserError(
        f"{path}: got weights that are split into several files, expected a single file. Join the "
        "tensors of all parts in one file."
    )
