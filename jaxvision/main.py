"""Trains the model of a config file: ``python -m jaxvision.main --config configs/quickstart.py:vit``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxvision.cli import train
from jaxvision.cli.arguments import Parser
from jaxvision.cli.exit import exit_status, run_and_exit
from jaxvision.cli.huge_pages import restart_with_huge_pages

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, and returns the exit status.

    Args:
      argv: the flags. Default: those of this process.

    Returns:
      0: success. 2: a mistake that the user can fix. 75: preempted by SIGTERM after saving a checkpoint; the same
      command resumes. 130: interrupted.

    Example:
      >>> main(["--config=configs/quickstart.py:vit", "--config.model.name=resnet51"])
      2
    """
    return exit_status(lambda: train.run(_arguments(sys.argv[1:] if argv is None else argv)))


def parse(argv: Sequence[str]) -> tuple[ConfigDict, Path]:
    """Returns the complete config and the workdir of a command line.

    Args:
      argv: the flags of ``python -m jaxvision.main``.

    Raises:
      UserError: an unknown flag, file or key, or a value of the wrong type.

    Example:
      >>> config, workdir = parse(["--config=configs/quickstart.py:vit", "--config.train.epochs=5"])
      >>> config.train.epochs, str(workdir)
      (5.0, 'runs/quickstart-vit')
    """
    return train.read(_arguments(argv))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m jaxvision.main",
        description="Train the model of a config file.",
        epilog=train.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    train.add_arguments(parser)
    arguments, rest = parser.parse_known_args(argv)
    arguments.overrides = rest
    return arguments


if __name__ == "__main__":
    restart_with_huge_pages()
    run_and_exit(main, preemptible=True)
