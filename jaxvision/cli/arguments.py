"""What several commands share: the parser, the arguments that choose a model, config overrides and image files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from jaxvision.errors import UserError

if TYPE_CHECKING:
    from jaxvision.classifier import Classifier


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError` for a mistake in the command line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. Run `{self.prog} --help` for the valid arguments.")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that choose a trained model; `load_model` reads them."""
    parser.add_argument(
        "--model",
        "-m",
        required=True,
        metavar="NAME|FOLDER",
        help="name of a model with weights on the hub, such as resnet50.a1_in1k, or the workdir of a finished run",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="read the weights of NAME from this file in timm's format instead of the hub",
    )
    parser.add_argument(
        "--num-classes", type=int, help="number of classes of the head in --checkpoint (default: the name's own)"
    )
    parser.add_argument("--image-size", type=int, help="side of the input in pixels (default: the weights' own)")


def load_model(arguments: argparse.Namespace) -> Classifier:
    """Returns the classifier that the arguments choose."""
    from jaxvision.classifier import load_classifier

    names = ("num_classes", "image_size", "in_channels")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}
    return load_classifier(arguments.model, checkpoint_path=arguments.checkpoint, **options)


def split_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (key, text) for each ``--config.SECTION.KEY=VALUE`` or ``--config.SECTION.KEY VALUE``.

    Raises:
      UserError: another argument.

    Example:
      >>> split_overrides(["--config.train.epochs=5", "--config.optimizer.name", "sgd"])
      [('train.epochs', '5'), ('optimizer.name', 'sgd')]
    """
    overrides = []
    rest = list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--config."):
            raise UserError(
                f"unknown argument {flag!r}, expected --config.SECTION.KEY=VALUE. Add --help to list all arguments."
            )
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        overrides.append((flag.removeprefix("--config."), value))
    return overrides


def image_files(paths: Sequence[str]) -> Iterator[Path]:
    """Yields the files among `paths`, and the image files in the folders among them, sorted by name.

    Raises:
      UserError: a path does not exist, or a folder has no images.
    """
    from jaxvision.data.folder import EXTENSIONS

    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)
            if not files:
                raise UserError(f"{path}: got a folder without images, expected files such as *.jpg or *.png.")
            yield from files
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path}: no such file or folder.")


def warn(text: str) -> None:
    """Prints a warning to the standard error."""
    print(f"warning: {text}", file=sys.stderr)
