"""``jaxvision push``: a model and its card on the Hugging Face hub."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from jaxvision.cli.arguments import path_argument

HELP = "upload a model to the Hugging Face hub, with a model card"
EXAMPLES = """The card describes the data, the recipe and the result of the run. timm and jaxvision load the repository
as hf-hub:OWNER/NAME. Pushing again adds a commit that replaces the files. Log in first with `hf auth login`, or set
HF_TOKEN.

examples:
  jaxvision push runs/flowers someone/flowers --dry-run
  jaxvision push runs/flowers someone/flowers --license apache-2.0 --private"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision push``."""
    parser.add_argument(
        "model",
        type=path_argument,
        metavar="WORKDIR|FOLDER",
        help="workdir of a finished run, or a folder in timm's format, whose card has no recipe and no result",
    )
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository, which is created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository (default: a public one)")
    parser.add_argument(
        "--license",
        help="license of the model by the hub's name, such as apache-2.0 (default: that of the weights that the run "
        "started from)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the card and the names of the files, and upload nothing"
    )


def run(arguments: argparse.Namespace) -> None:
    """Uploads the files and prints the address, or prints the card."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # Nothing is computed.
    from jaxvision.run.publish import check_repo, push_to_hub, write_repository

    if not arguments.dry_run:
        print(push_to_hub(arguments.model, arguments.repo, private=arguments.private, license=arguments.license))
        return
    check_repo(arguments.repo)
    with tempfile.TemporaryDirectory() as folder:
        write_repository(folder, arguments.model, arguments.repo, license=arguments.license)
        print(Path(folder, "README.md").read_text(encoding="utf-8"))
        for file in sorted(Path(folder).iterdir()):
            print(f"{file.stat().st_size:13,} bytes  {file.name}")
