"""Opening weight files, and reading and writing safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxvision.disk import replaced, sync
from jaxvision.errors import UserError
from jaxvision.weights.foreign import renamed
from jaxvision.weights.formats import recognize, sharded_error
from jaxvision.weights.mapped import MappedFile
from jaxvision.weights.npz import NpzFile
from jaxvision.weights.pickle import PickleFile
from jaxvision.weights.weight_file import FLOATS, WeightFile, first_names, without_wrappers

#: Names of the weight file in a folder, preferred first, as in timm.
NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
#: Endings of weight files.
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".pth.tar", ".npz")


def open_weights(source: str | Path | WeightFile) -> WeightFile:
    """Returns the open weight file.

    Args:
      source: a safetensors file, a NumPy archive, or a PyTorch pickle of a state_dict or of a checkpoint that nests one
        as training scripts do. A moving average of the weights is preferred, as in timm. A file with the names of
        another library (`jaxvision.weights.foreign`) is read under timm's. For a folder see `find_file`. An open file
        is returned unchanged.

    Raises:
      UserError: the file is missing, truncated or of another format, or it is a pickle of more than tensors.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_file({"module.fc.bias": np.ones(3, np.float32)}, f"{folder}/model.safetensors")
      ...     file = open_weights(folder)
      ...     print(file.shapes, file.dtypes, file.tensor("fc.bias"))
      {'fc.bias': (3,)} {'fc.bias': 'F32'} [1. 1. 1.]
    """
    if isinstance(source, WeightFile):
        return source
    path = find_file(source)
    try:
        with path.open("rb") as file:
            kind = recognize(path, file)
            if kind == "safetensors":
                return renamed(SafetensorsFile(path, file))
    except OSError as e:
        raise UserError(f"{path}: cannot read the file: {e.strerror or e}. Check its permissions and the disk.") from e
    except (SafetensorError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        size = f"{path.stat().st_size:,} bytes"
        formats = "not a safetensors file" if path.suffix == ".safetensors" else "not a weight file"
        raise UserError(f"{path} ({size}) is truncated or {formats}: {e}. Copy or download the file again.") from e
    if kind == "npz":
        return renamed(NpzFile(path))
    if path.suffix == ".safetensors":
        raise UserError(
            f"{path}: got a PyTorch pickle, expected a safetensors file. Rename it to "
            f"{path.with_suffix('.pth').name}; reading it runs no code."
        )
    return renamed(PickleFile(path))


def find_file(path: str | Path) -> Path:
    """Returns the path of an existing weight file.

    Args:
      path: the file, its folder, or the workdir of a finished run. In a folder, the names that timm writes (`NAMES`)
        are preferred. Otherwise the folder must contain a single weight file.

    Raises:
      UserError: the file does not exist, or the folder contains none or several.
    """
    path = weights_folder(path)
    # Unlike those of Path, these functions do not raise for a name that no file can have.
    if os.path.isdir(path):
        return _find_in_folder(path)
    if not os.path.isfile(path):
        is_address = str(path).startswith(("http:", "https:"))
        fix = ". Download the file, and pass its path." if is_address else ""
        raise UserError(f"no such weight file: {str(path)[:300]!r}{fix}")
    return path


def weights_folder(path: str | Path) -> Path:
    """Returns the folder with the exported weights if the path is the workdir of a finished run, else the path.

    Raises:
      UserError: the run has no result yet, or the path is empty.
    """
    if path == "":  # which would be the current folder
        raise UserError(
            'checkpoint_path: got an empty path, expected a file or a folder. Pass "." for the current folder.'
        )
    path = Path(path).expanduser()
    if any(os.path.isfile(path / name) for name in NAMES):
        return path
    if os.path.isfile(path / "export" / "model.safetensors"):
        return path / "export"
    if is_unfinished_run(path):
        raise unfinished_run_error(path)
    return path


def is_unfinished_run(folder: Path) -> bool:
    """Returns whether a folder that has no export is the workdir of a run."""
    if not (os.path.isdir(folder / "checkpoints") or os.path.isfile(folder / "classifier.json")):
        return False
    # Other trainers also write a folder checkpoints, but with weights beside it.
    return not any(name.endswith(SUFFIXES) for name in _file_names(folder))


def unfinished_run_error(workdir: Path) -> UserError:
    """Returns the error for the workdir of a run that has no result yet."""
    has_checkpoints = os.path.isdir(workdir / "checkpoints")
    convert = f", or export a checkpoint of it: jaxvision convert {workdir} FOLDER" if has_checkpoints else "."
    return UserError(
        f"{workdir}: got the workdir of a run that is not finished, expected one with a result. To finish it, rerun "
        f"its command (python -m jaxvision.main --config FILE --workdir {workdir}){convert}"
    )


def _file_names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as e:
        raise UserError(f"{folder}: cannot read the folder: {e.strerror or e}. Check its permissions.") from e


def _find_in_folder(folder: Path) -> Path:
    names = _file_names(folder)
    for name in NAMES:
        if name in names:
            return folder / name
    for name in names:
        if name.endswith(".index.json"):
            raise sharded_error(folder / name)
    found = [name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise UserError(
            f"{folder}: got a folder with {len(found)} weight files ({first_names(found)}), expected {NAMES[0]} or a "
            "single file. Pass the path of one of them."
        )
    contents = first_names(names) or "no files"
    raise UserError(f"{folder}: got a folder without weights ({contents}), expected {NAMES[0]} or {NAMES[1]}.")


class SafetensorsFile(WeightFile):
    """A safetensors file, mapped into memory.

    Args:
      path: the file.
      file: the same file, open for reading. It may be closed afterwards.

    Raises:
      SafetensorError: the header is damaged, or tensors lie outside the file.
    """

    def __init__(self, path: Path, file: BinaryIO):
        with safetensors.safe_open(path, framework="np"):
            pass  # raises unless the header is valid and all tensors lie within the file
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        self._mapped = MappedFile(file)
        self.path = path
        self.metadata = header.pop("__metadata__", {})
        rows = without_wrappers(header, path)
        self.shapes = {name: tuple(row["shape"]) for name, row in rows.items()}
        self.dtypes = {name: row["dtype"] for name, row in rows.items()}
        self._ranges = {name: [8 + length + offset for offset in row["data_offsets"]] for name, row in rows.items()}

    def tensor(self, name: str) -> np.ndarray:
        return self._mapped.array(FLOATS[self.dtypes[name]], self.shapes[name], self._ranges[name][0])

    def forget(self, name: str) -> None:
        self._mapped.forget(*self._ranges[name])


def write_safetensors(tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file atomically. Equal tensors and metadata give equal bytes.

    Raises:
      OSError, SafetensorError: the file cannot be written. An earlier file at `path` is unchanged.
    """
    with replaced(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors makes its files unreadable for other users
        save_file(dict(tensors), temporary, metadata=dict(metadata))
        _sort_metadata(temporary)
        temporary.chmod(mode)
        sync(temporary)


def _sort_metadata(path: Path) -> None:
    """Sorts the metadata in a file's header, because safetensors writes it in arbitrary order."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))
