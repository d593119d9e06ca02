"""Tar archives whose files are read in any order, without unpacking them."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

from jaxvision.report import show_progress


class Member(NamedTuple):
    """A file in an uncompressed archive.

    Attributes:
      archive: the open archive.
      offset: position of the file's first byte.
      size: number of bytes.
    """

    archive: BinaryIO
    offset: int
    size: int

    def read(self) -> bytes:
        """Returns the contents.

        Raises:
          EOFError: the archive is truncated.
        """
        self.archive.seek(self.offset)
        data = self.archive.read(self.size)
        if len(data) != self.size:
            raise EOFError(f"{self.archive.name} ends in the middle of a file")
        return data


class Tar:
    """An archive. Decompresses it first if necessary, because a compressed one can only be read from its start.

    Args:
      path: the archive.
      scratch: folder for the decompressed archive.
    """

    def __init__(self, path: Path, scratch: Path):
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                path = _decompress(path, scratch)
        self._file = path.open("rb")

    def __enter__(self) -> Tar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def files(self, inside: Member | None = None) -> dict[str, Member]:
        """Returns the files by their path in the archive.

        Args:
          inside: a file that is itself an archive, whose files are returned instead.
        """
        start = inside.offset if inside else 0
        self._file.seek(start)  # `tarfile` reads from here, and its positions are those in the file
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            return {
                member.name.removeprefix("./"): Member(self._file, member.offset_data, member.size)
                for member in archive
                if member.isreg()
            }


def _decompress(path: Path, scratch: Path) -> Path:
    """Returns the path of the decompressed archive."""
    unpacked = scratch / f"{path.name}.tar"
    with (
        path.open("rb") as compressed,
        gzip.open(compressed) as file,
        unpacked.open("wb") as out,
        show_progress(f"unpack {path.name}", path.stat().st_size, unit="bytes") as update,
    ):
        while data := file.read(2**20):
            out.write(data)
            update(compressed.tell())
    return unpacked
