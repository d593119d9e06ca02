"""``jaxvision train``, which is also ``python -m jaxvision.main``: train the model of a config file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jaxvision.cli.arguments import path_argument, split_overrides
from jaxvision.cli.compilation_cache import add_cache_argument, use_compilation_cache
from jaxvision.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HELP = "train the model of a config file, as python -m jaxvision.main does"
EXAMPLES = """Rerun the same command after an interruption. It resumes from the newest checkpoint with bit-identical
results.

examples:
  python -m jaxvision.main --config configs/quickstart.py:vit --workdir runs/digits
  python -m jaxvision.main --config configs/quickstart.py:vit --config.optimizer.learning_rate=1e-3
  python -m jaxvision.main --config configs/quickstart.py:vit --help"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision train``, except for the overrides of keys."""
    parser.usage = "%(prog)s --config FILE[:ARGUMENT] [--workdir FOLDER] [--config.SECTION.KEY=VALUE ...]"
    parser.add_argument(
        "--config",
        type=path_argument,
        metavar="FILE[:ARGUMENT]",
        help="a Python file with get_config([argument]): a config of your own, or one of those listed below. "
        "--config.SECTION.KEY=VALUE overrides a key",
    )
    parser.add_argument(
        "--workdir",
        type=path_argument,
        metavar="FOLDER",
        help="where the run writes its checkpoints, metrics, report and exported model (default: runs/NAME)",
    )
    parser.add_argument(
        "--help", "-h", action="store_true", help="print this page and, with --config, every key with its value"
    )
    add_cache_argument(parser)
    parser.set_defaults(parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Trains the model of the config, or prints the help.

    Returns:
      The exit status: 0, or 130 if the run was interrupted.

    Raises:
      UserError: a mistake in the flags, the config, the data or the weights.
      Preempted: SIGTERM arrived, and a checkpoint is saved.
    """
    if arguments.help:
        print(help_page(arguments))
        return 0
    use_compilation_cache(arguments)
    config, workdir = read(arguments)
    from jaxvision import run as runs

    try:
        runs.train(config, workdir)
    except KeyboardInterrupt as e:
        raise KeyboardInterrupt(f"interrupted. {_resume_text(workdir)}") from e
    return 0


def read(arguments: argparse.Namespace) -> tuple[ConfigDict, Path]:
    """Returns the complete config with the overrides applied, and the workdir.

    Raises:
      UserError: an unknown flag, file or key, or a value of the wrong type.
    """
    overrides = split_overrides(arguments.overrides)
    if arguments.workdir is not None and "://" in arguments.workdir:
        raise UserError(
            f"--workdir: got {arguments.workdir}, expected a folder. Mount the bucket, for example with gcsfuse, and "
            "give the path where it is mounted."
        )
    from jaxvision.run.config import complete, load, packaged

    if arguments.config is None:
        raise UserError(f"--config is missing. Choose one of {', '.join(packaged())}, or a file of your own.")
    config = complete(load(arguments.config), overrides)
    if arguments.workdir is not None:
        return config, Path(arguments.workdir)
    file, _, argument = arguments.config.partition(":")
    return config, Path("runs") / (Path(file).stem + (f"-{argument}" if argument else ""))


def help_page(arguments: argparse.Namespace) -> str:
    """Returns the help: the flags, and the keys of the config or else the configs to choose from."""
    from jaxvision.run.config import packaged
    from jaxvision.run.explain import help_text

    page = arguments.parser.format_help()
    if arguments.config is None:
        return "\n".join([page, "configs:", *[f"  {name}" for name in packaged()]])
    return f"{page}\n{help_text(arguments.config, split_overrides(arguments.overrides))}"


def _resume_text(workdir: Path) -> str:
    """Returns what the next run in a workdir does."""
    from jaxvision.checkpoint import saved_steps

    steps = saved_steps(workdir)
    if not steps:
        return "No checkpoint was saved yet: the same command starts from scratch."
    return f"The same command resumes from the checkpoint of step {steps[-1]:,}."
