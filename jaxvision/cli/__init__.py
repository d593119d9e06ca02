"""The command ``jaxvision``: each of its commands is a module of this package."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from jaxvision.cli import (
    attention,
    convert,
    doctor,
    embed,
    evaluate,
    info,
    plan,
    predict,
    probe,
    push,
    recommend,
    soup,
    train,
)
from jaxvision.cli import exit as process_exit
from jaxvision.cli import list as list_models
from jaxvision.cli.arguments import Parser
from jaxvision.cli.compilation_cache import add_cache_argument, use_compilation_cache
from jaxvision.cli.huge_pages import restart_with_huge_pages
from jaxvision.errors import UserError

# In the order in which a user meets them. They import JAX inside their functions, so that `jaxvision --help` answers at
# once.
_COMMANDS = {
    "recommend": recommend,
    "list": list_models,
    "info": info,
    "embed": embed,
    "probe": probe,
    "train": train,
    "predict": predict,
    "attention": attention,
    "evaluate": evaluate,
    "soup": soup,
    "convert": convert,
    "push": push,
    "plan": plan,
    "doctor": doctor,
}

#: Those that compile programs for the devices of this machine; `train` adds the argument itself.
_COMPILING = ("recommend", "embed", "probe", "predict", "attention", "evaluate", "soup")

_EXAMPLES = """examples:
  jaxvision recommend --data photos
  jaxvision train --config configs/quickstart.py:vit --workdir runs/digits
  jaxvision predict --model runs/digits image.png"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status.

    Args:
      argv: the arguments after ``jaxvision``. Default: those of this process.

    Returns:
      0: success. 1: `plan` found that the step does not fit, `doctor` found a problem, or `predict`, `attention` or
      `embed` skipped some images. 2: a mistake that the user can fix. 75: `train` was preempted and saved a checkpoint.
      130: interrupted.

    Example:
      >>> main(["info", "resnet51"])
      2
    """
    return process_exit.exit_status(lambda: _run(sys.argv[1:] if argv is None else argv))


def run_and_exit() -> None:
    """Runs the command line of this process, and ends the process with its exit status."""
    if sys.argv[1:2] and sys.argv[1] in ("train", *_COMPILING):
        restart_with_huge_pages()
    process_exit.run_and_exit(main, preemptible=sys.argv[1:2] == ["train"])


def _run(argv: Sequence[str]) -> int | None:
    arguments, rest = _parser().parse_known_args(argv)
    if rest and arguments.command not in ("plan", "train"):
        raise UserError(
            f"unrecognized arguments: {' '.join(rest)}. Run `jaxvision {arguments.command} --help` for the valid ones."
        )
    arguments.overrides = rest
    if arguments.command in _COMPILING:
        use_compilation_cache(arguments)
    return _COMMANDS[arguments.command].run(arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="jaxvision",
        description="ResNet, Vision Transformer and EfficientNet on JAX, with timm's weights.",
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            epilog=command.EXAMPLES,
            formatter_class=RawDescriptionHelpFormatter,
            add_help=command is not train,  # its help lists the keys of the config
            allow_abbrev=command is not train,
        )
        command.add_arguments(subparser)
        if name in _COMPILING:
            add_cache_argument(subparser)
    return parser
