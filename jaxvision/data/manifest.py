"""The list of the images in a folder, walked once and then mapped into memory.

Walking through a million files takes minutes on a network disk, and a list of their paths takes 70 MB in each process.
The first process that walks through a large folder therefore writes its manifest, an Arrow file in the cache folder,
and all other processes of the machine map it, now and at later starts. The folders and their times are part of it: an
image that is added, removed or renamed changes one of them, and the folder is then walked again. The name of the file
holds a digest of its contents, so a damaged one is noticed and written again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.data.walk import Ignored, Walk, folder_times, ignored_text, image_endings, walk_images
from jaxvision.disk import cache_folder, hold_lock, temporary_path

#: Number of images from which on a manifest is saved. A walk through fewer takes only a moment.
SMALLEST = 10_000

#: In ns. A folder that changed less than this before the walk may change again without another time.
SETTLED = 2 * 10**9

_VERSION = 3  # of the file, and of the rules of the walk
_CHUNK = 2**20  # names in an Arrow array
_KEPT = 30 * 86400  # seconds after which the manifest of an earlier state of a folder is removed


@dataclass(frozen=True)
class Manifest:
    """The image files below a folder, grouped by the folder that they are in.

    Attributes:
      names: Arrow strings of bytes: the paths of the folders, relative to the root, then the names of all images.
      ends: int64 [folders], number of images in each folder and those before it.
      times: int64 [folders, 2], as from `jaxvision.data.walk.folder_times`.
      ignored: as in `jaxvision.data.walk.Walk`, like the next three.
      links: links to folders that were followed -> the real paths of their targets.
      linked_files: uint64 [n], the images that are listed through a link to them.
      linked_folders: uint64 [n], the folders that these images are in.
      file: path of the saved manifest; None if it is not saved.
    """

    names: Any
    ends: np.ndarray
    times: np.ndarray
    ignored: dict[str, Ignored]
    links: dict[str, str]
    linked_files: np.ndarray
    linked_folders: np.ndarray
    file: str | None = None

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __reduce__(self) -> tuple[Callable[..., Manifest], tuple[Any, ...]]:
        if self.file is not None:
            return Manifest.open, (self.file,)  # each process maps the file itself
        linked = (self.links, self.linked_files, self.linked_folders)
        return Manifest, (self.names, self.ends, self.times, self.ignored, *linked)

    def folders(self) -> list[str]:
        """Returns the paths of the folders, relative to the root, whose own path is empty."""
        return [os.fsdecode(name.as_py()) for name in self.names[: len(self.ends)]]

    def real_folders(self, root: str | os.PathLike[str]) -> dict[str, str]:
        """Returns the real path of each folder -> its path relative to `root`, the folder of the manifest."""
        real: dict[str, str] = {}  # relative path -> real path; a folder comes before those in it
        for folder in self.folders():
            outer, name = os.path.split(folder)
            if not folder:
                real[folder] = os.path.realpath(root)
            else:
                real[folder] = self.links.get(folder) or os.path.join(real[outer], name)
        return {path: folder for folder, path in real.items()}

    def path(self, index: int) -> str:
        """Returns the path of an image, relative to the root."""
        folder = int(np.searchsorted(self.ends, index, side="right"))
        name = self.names[len(self.ends) + index].as_py()
        return os.path.join(os.fsdecode(self.names[folder].as_py()), os.fsdecode(name))

    def checksum(self, rows: np.ndarray) -> int:
        """Returns a checksum of the paths of some images, relative to the root; `rows` is int [n], ascending."""
        counts = np.diff(np.searchsorted(rows, self.ends), prepend=0)  # of each folder
        folders = lengths = names = 0
        for folder in np.flatnonzero(counts):
            folders = zlib.crc32(b"%b\0%d\0" % (self.names[folder].as_py(), counts[folder]), folders)
        start = -len(self.ends)  # of the chunk, counted from the first image
        for chunk in self.names.chunks:
            first, last = np.searchsorted(rows, (start, start + len(chunk)))
            if first < last:
                chosen = chunk.take((rows[first:last] - start).astype(np.int64))
                ends = np.frombuffer(chosen.buffers()[1], np.int32)[: len(chosen) + 1]
                # Apart from each other, so that the result does not depend on where a chunk ends.
                lengths = zlib.crc32(np.diff(ends).tobytes(), lengths)
                names = zlib.crc32(memoryview(chosen.buffers()[2])[ends[0] : ends[-1]], names)
            start += len(chunk)
        return zlib.crc32(b"%d %d %d" % (folders, lengths, names))

    def save(self, folder: Path, key: str) -> Manifest:
        """Writes the manifest to a file ``KEY-DIGEST.arrow``, and returns it mapped from there.

        Raises:
          OSError: the file cannot be written.
        """
        import pyarrow as pa

        ignored = {kind: asdict(found) for kind, found in self.ignored.items()}
        about = {
            "ignored": json.dumps(ignored),
            "ends": self.ends.tobytes(),
            "times": self.times.tobytes(),
            "links": json.dumps(self.links),
            "linked_files": self.linked_files.tobytes(),
            "linked_folders": self.linked_folders.tobytes(),
        }
        schema = pa.schema([("name", pa.binary())], metadata=about)
        unfinished = temporary_path(folder / f"{key}.arrow")
        try:
            with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for chunk in self.names.chunks:
                    writer.write_batch(pa.record_batch([chunk], schema=schema))
            file = folder / _file_name(key, unfinished)
            unfinished.replace(file)
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
        return Manifest.open(str(file))

    @staticmethod
    def open(file: str) -> Manifest:
        """Returns a saved manifest, mapped into memory.

        Raises:
          OSError: no such file, or it is damaged.
        """
        import pyarrow as pa

        try:
            table = pa.ipc.open_file(pa.memory_map(file)).read_all()
            about = table.schema.metadata
            ends, times = (np.frombuffer(about[key], np.int64) for key in (b"ends", b"times"))
            ignored = {kind: Ignored(**found) for kind, found in json.loads(about[b"ignored"]).items()}
            links = json.loads(about[b"links"])
            files, inner = (np.frombuffer(about[key], np.uint64) for key in (b"linked_files", b"linked_folders"))
        except (pa.ArrowException, KeyError, ValueError) as e:
            raise OSError(f"{file}: not a manifest ({e})") from e
        return Manifest(table.column(0), ends, times.reshape(-1, 2), ignored, links, files, inner, file)


def _file_name(key: str, file: Path) -> str:
    """Returns the name of a manifest's file, which holds a digest of the contents of `file`."""
    with file.open("rb") as opened:
        return f"{key}-{hashlib.file_digest(opened, 'sha256').hexdigest()[:16]}.arrow"


class ImageFiles:
    """Paths of images of a manifest, computed when they are asked for.

    Args:
      root: the folder of the manifest.
      manifest: the manifest.
      rows: which of its images, ascending; a range or int [n].
    """

    def __init__(self, root: str, manifest: Manifest, rows: range | np.ndarray):
        self.root = root
        self.manifest = manifest
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:
        return os.path.join(self.root, self.manifest.path(int(self.rows[index])))

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: np.ndarray) -> ImageFiles:
        """Returns some of the paths; `indices` is int [n], ascending."""
        rows = self.rows.start + indices if isinstance(self.rows, range) else self.rows[indices]
        return ImageFiles(self.root, self.manifest, rows.astype(np.int32) if len(self.manifest) < 2**31 else rows)

    def checksum(self) -> int:
        """Returns a checksum of the paths, relative to the root, in their order."""
        rows = self.rows
        return self.manifest.checksum(np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows)


def read_folder(root: str | os.PathLike[str]) -> tuple[Manifest, str | None]:
    """Returns the manifest of a folder, and a warning if it cannot be saved.

    Uses a saved one if no folder has changed since. Otherwise walks through the folder and, if there are many images,
    saves a manifest for the next time, in ``~/.cache/jaxvision/manifests``. Other processes that walk through the same
    folder at the same time wait for the first one.

    Args:
      root: the folder.
    """
    root = os.fspath(root)
    cache = cache_folder("manifests")
    identity = [_VERSION, os.path.realpath(root), sorted(image_endings())]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    found = _find_saved(root, cache, key)
    if found is not None:
        return found, None
    with ExitStack() as stack:

        def find_other() -> Manifest | None:
            waited: list[bool] = []
            stack.enter_context(hold_lock(cache / f"{key}.lock", lambda: waited.append(True)))
            other = _find_saved(root, cache, key)
            if waited:
                stack.close()  # without a list that can be saved, all walk at the same time
            return other

        started = time.time_ns()
        walk = walk_images(root)
        manifest = _collect(walk, find_other)
        if manifest.file is not None or len(manifest) < SMALLEST:
            return manifest, None
        if unsure := _unsure(walk.ignored):
            return manifest, (
                f"{root}: the list of its {len(manifest):,} images is not saved, because of what may change unnoticed: "
                f"{ignored_text(unsure)}. Each process reads the folder at each start. Remove or repair these entries."
            )
        if not _is_settled(walk, started):
            return manifest, None
        try:
            cache.mkdir(parents=True, exist_ok=True)
            return manifest.save(cache, key), None
        except OSError as e:
            return manifest, (
                f"{root}: cannot save the list of its {len(manifest):,} images in {cache} ({e.strerror or e}); each "
                "process reads the folder. Set XDG_CACHE_HOME to a folder that can be written to."
            )


def _collect(walk: Walk, find_other: Callable[[], Manifest | None]) -> Manifest:
    """Returns the manifest of a walk. If there are many images, asks `find_other` first for that of another process."""
    import pyarrow as pa

    counts: dict[str, int] = {}
    chunks: list[Any] = []
    files = iter(walk.files)
    for size in itertools.chain((SMALLEST,), itertools.repeat(_CHUNK)):
        names = []
        for path in itertools.islice(files, size):
            folder, name = os.path.split(path)
            counts[folder] = counts.get(folder, 0) + 1
            names.append(os.fsencode(name))
        chunks.append(pa.array(names, pa.binary()))
        if len(names) < size:
            break
        if size == SMALLEST and (other := find_other()) is not None:
            return other
    folders = pa.array([os.fsencode(folder) for folder in walk.folders], pa.binary())
    return Manifest(
        names=pa.chunked_array([folders, *chunks]),
        ends=np.cumsum([counts.get(folder, 0) for folder in walk.folders], dtype=np.int64),
        times=np.array([*walk.folders.values()], np.int64).reshape(-1, 2),
        ignored=walk.ignored,
        links=walk.links,
        linked_files=np.array(walk.linked_files, np.uint64),
        linked_folders=np.array(sorted(walk.linked_folders), np.uint64),
    )


def _unsure(ignored: Mapping[str, Ignored]) -> dict[str, Ignored]:
    """Returns what may become readable without a change of the folders that were read."""
    return {kind: found for kind, found in ignored.items() if kind.startswith(("unreadable", "broken link"))}


def _is_settled(walk: Walk, started: int) -> bool:
    """Returns whether the times of the folders show every later change of what was listed."""
    decisive = 0 if os.name == "nt" else 1  # the time that a user cannot set
    return all(0 < times[decisive] < started - SETTLED for times in walk.folders.values())


def _find_saved(root: str, cache: Path, key: str) -> Manifest | None:
    """Returns the saved manifest of a folder in its present state, and removes old ones of other states."""
    found = None
    with suppress(OSError):
        # The newest first. Machines that share the cache may have folders of their own at the same path.
        for file in sorted(cache.glob(f"{key}-*.arrow"), key=lambda file: file.stat().st_mtime, reverse=True):
            with suppress(OSError):
                if found is None and file.name == _file_name(key, file):
                    manifest = Manifest.open(str(file))
                    if _is_current(root, manifest):
                        found = manifest
                        os.utime(file)
                        continue
                if file.stat().st_mtime < time.time() - _KEPT:  # no running process still has to open it
                    file.unlink()
    return found


def _is_current(root: str, manifest: Manifest) -> bool:
    """Returns whether no folder of a manifest has changed."""

    def unchanged(part: Iterable[tuple[str, list[int]]]) -> bool:
        return all([*folder_times(os.stat(os.path.join(root, folder)))] == times for folder, times in part)

    folders = [*zip(manifest.folders(), manifest.times.tolist())]
    parts = [folders[i : i + 256] for i in range(0, len(folders), 256)]
    with ThreadPoolExecutor(16) as threads:  # a network disk answers many questions at a time
        return all(threads.map(unchanged, parts))
