"""The images that a command line names: files, folders, and paths from standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jaxvision.cli.arguments import path_argument, warn
from jaxvision.cli.exit import MISTAKE, SOME_FAILED
from jaxvision.errors import UserError, printable_line

if TYPE_CHECKING:
    import argparse

T = TypeVar("T")


def add_images_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the argument ``images``, for `ImageInputs`."""
    parser.add_argument(
        "images",
        nargs="+",
        type=path_argument,
        metavar="IMAGE",
        help="image files, folders of them, or - to read paths from standard input, one per line",
    )


class ImageInputs:
    """The images that a command line names. Those that cannot be read are reported and skipped.

    Args:
      paths: files, folders, and ``"-"`` for paths from standard input.

    Attributes:
      files: the image files, in the order of `paths`; `jaxvision.data.walk.walk_images` lists those of a folder.

    Raises:
      UserError: there is no image file at all.
    """

    def __init__(self, paths: Sequence[str]):
        self.files: list[Path] = []
        self._read = 0
        self._problems: list[str] = []
        for path in _with_standard_input(paths):
            self._find(Path(path))
        if not self.files:
            problems = "; ".join(problem.rstrip(".") for problem in self._problems)
            raise UserError(f"{problems or 'standard input: got no paths, expected one per line'}.")
        for problem in self._problems:
            _print_error(problem)

    def _find(self, path: Path) -> None:
        from jaxvision.data.walk import PHOTOS, ignored_text, walk_images

        if not os.path.isdir(path):  # unlike Path.is_dir, it does not raise for a path that no file can have
            if os.path.exists(path):
                self.files.append(path)
            else:
                self._problems.append(f"{path}: no such file or folder.")
            return
        walk = walk_images(path)
        before = len(self.files)
        self.files += [path / name for name in walk.files]
        ignored = ignored_text(walk.ignored)
        if len(self.files) == before:
            only = f" (only {ignored})" if ignored else ""
            self._problems.append(f"{path}: got a folder without images{only}, expected files such as *.jpg or *.png.")
        elif any(kind in PHOTOS or kind.startswith("unreadable") for kind in walk.ignored):
            self._problems.append(f"{path}: ignored {ignored}")
        elif ignored:
            warn(f"{path}: ignored {ignored}")

    def read(self, images_of: Callable[[list[Path]], T]) -> Iterator[tuple[Path, T]]:
        """Yields each file that can be read, and what `images_of` makes of it, such as `Classifier.images`."""

        def each() -> Iterator[tuple[Path, T | UserError]]:
            for file in self.files:
                try:
                    yield file, images_of([file])
                except UserError as e:  # the other images still count
                    yield file, e

        return self.readable(each())

    def readable(self, results: Iterable[tuple[Path, T | UserError]]) -> Iterator[tuple[Path, T]]:
        """Yields the results of the files that could be read, and prints the errors of the others.

        Args:
          results: each file with its result or its error.
        """
        from jaxvision.data.walk import advice

        for file, result in results:
            if isinstance(result, UserError):
                self._problems.append(str(result))
                _print_error(". ".join(filter(None, [str(result), advice(file.name)])))
            else:
                self._read += 1
                yield file, result

    @property
    def status(self) -> int:
        """The exit status after `read`: 0, 1 if some images were skipped, or 2 if all were."""
        if not self._problems:
            return 0
        return SOME_FAILED if self._read else MISTAKE


def _with_standard_input(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if path != "-":
            yield path
            continue
        data = sys.stdin.buffer.read()  # bytes, because names need not be valid in the encoding of the terminal
        for line in data.split(b"\0" if b"\0" in data else b"\n"):  # `find -print0` separates names by null
            if name := line.removesuffix(b"\r"):
                yield path_argument(os.fsdecode(name))


def _print_error(text: str) -> None:
    print(f"error: {printable_line(text)}", file=sys.stderr)
