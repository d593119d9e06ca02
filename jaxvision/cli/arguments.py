"""What several commands share: the parser, the arguments that choose a model, config overrides and paths."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jaxvision.errors import UserError, printable_line

if TYPE_CHECKING:
    from jaxvision.classifier import Classifier
    from jaxvision.ensemble import Ensemble


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError` for a mistake in the command line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. Run `{self.prog} --help` for the valid arguments.")


def path_argument(text: str) -> str:
    """Returns a path with ``~`` as the home folder. A shell does not replace it in ``--workdir=~/runs``.

    Raises:
      ArgumentTypeError: the path is empty, for example because a shell variable is not set. It would mean the current
        folder.

    >>> path_argument("runs/~")
    'runs/~'
    """
    if not text:
        raise argparse.ArgumentTypeError("got an empty path, expected one such as runs/mine, or . for this folder")
    return os.path.expanduser(text)


def add_model_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds the arguments that choose a trained model; `load_model` reads them, or `load_ensemble` for several."""
    more = "; repeat it to average the probabilities of several models" if several else ""
    parser.add_argument(
        "--model",
        "-m",
        required=True,
        action="append" if several else "store",
        type=path_argument,
        metavar="NAME|FOLDER",
        help="name of a model with weights on the hub, such as resnet50.a1_in1k, or the workdir of a finished run"
        + more,
    )
    if several:
        parser.add_argument(
            "--weights", metavar="W,W,...", help="weights of the models in the average, such as 2,1,1 (default: equal)"
        )
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        metavar="FILE",
        help="read the weights of NAME from this file in timm's format instead of the hub",
    )
    parser.add_argument(
        "--num-classes", type=int, help="number of classes of the head in --checkpoint (default: the name's own)"
    )
    parser.add_argument("--image-size", type=int, help="side of the input in pixels (default: the weights' own)")


def load_model(arguments: argparse.Namespace, model: str | None = None, **further: Any) -> Classifier:
    """Returns the classifier that the arguments choose.

    Args:
      arguments: of the command.
      model: one of several models, by default the only one.
      **further: options of `load_classifier`.
    """
    from jaxvision.classifier import load_classifier

    names = ("num_classes", "image_size", "in_channels")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}
    return load_classifier(model or arguments.model, checkpoint_path=arguments.checkpoint, **options, **further)


def add_tta_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--tta``; `load_ensemble` reads it."""
    parser.add_argument(
        "--tta",
        metavar="flip|crops",
        help="average the probabilities over views of each image. flip: the image and its mirror image, twice the "
        "time. crops: the four corners and the center, and their mirror images, ten times the time",
    )


def load_members(arguments: argparse.Namespace) -> list[Classifier]:
    """Returns the models that the arguments choose."""
    models = arguments.model
    for name in ("checkpoint", "num_classes") if len(models) > 1 else ():
        if getattr(arguments, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')}: got {len(models)} models, expected one. Convert that model to a "
                "folder first: jaxvision convert NAME FOLDER --checkpoint FILE"
            )
    return [load_model(arguments, model) for model in models]


def load_ensemble(arguments: argparse.Namespace, members: Sequence[Classifier] | None = None) -> Ensemble:
    """Returns the models that the arguments choose as one; `members` are those of `load_members`."""
    from jaxvision.ensemble import Ensemble

    return Ensemble(
        load_members(arguments) if members is None else members,
        weights=_weights(arguments.weights),
        tta=getattr(arguments, "tta", None),
        names=arguments.model,
    )


def _weights(text: str | None) -> list[float]:
    """Returns the numbers of ``--weights``; none if it is not given."""
    if text is None:
        return []
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as e:
        raise UserError(f"--weights: got {text!r}, expected numbers such as 2,1,1.") from e


def add_overwrite_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--overwrite``; `check_outputs` reads it."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace output files that exist (default: refuse to replace them)"
    )


def check_outputs(files: Iterable[Path], arguments: argparse.Namespace) -> None:
    """Checks, before anything is computed, that a command can write its files, and replaces none without being asked.

    Raises:
      UserError: a file is where a folder is needed, or an output exists and ``--overwrite`` is not given.
    """
    files = list(files)
    for folder in {file.parent for file in files}:
        found = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), None)
        if found is not None and not os.path.isdir(found):
            raise UserError(f"{found}: got a file, expected a folder. Choose another output, or remove the file.")
    existing = [] if arguments.overwrite else [file for file in files if os.path.lexists(file)]
    if existing:
        others = f" and {len(existing) - 1} more of its outputs exist" if len(existing) > 1 else " exists"
        raise UserError(f"{existing[0]}{others} already. Choose another output, or add --overwrite to replace.")


def check_is_no_workdir(output: Path) -> None:
    """Checks that an export is not written over the config of a run.

    Raises:
      UserError: the folder is the workdir of a run.
    """
    if os.path.exists(output / "metrics.jsonl") or os.path.exists(output / "checkpoints"):
        raise UserError(
            f"{output} is the workdir of a run, whose config.json would be overwritten. Choose another folder."
        )


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


def warn(text: str) -> None:
    """Prints a warning to the standard error."""
    print(f"warning: {printable_line(text)}", file=sys.stderr)
