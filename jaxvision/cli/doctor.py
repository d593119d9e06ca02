"""``jaxvision doctor``: problems of this machine and how to fix them."""

from __future__ import annotations

import argparse
import dataclasses
import json

from jaxvision.cli.arguments import path_argument

HELP = "check this machine, and print the commands that fix its problems"
EXAMPLES = """examples:
  jaxvision doctor
  jaxvision doctor --workdir /shared/runs --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision doctor``."""
    parser.add_argument(
        "--workdir", default="runs", type=path_argument, help="where your runs write their files (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: facts and findings")


def run(arguments: argparse.Namespace) -> int:
    """Prints facts about the machine and the problems found. Returns 1 if there are problems."""
    from jaxvision import doctor

    facts = doctor.examine(arguments.workdir)
    found = doctor.findings(facts)
    if arguments.json:
        findings = [dataclasses.asdict(finding) for finding in found]
        print(json.dumps({"facts": dataclasses.asdict(facts), "findings": findings}))
        return 1 if found else 0
    for name, value in doctor.summary(facts).items():
        print(f"{name:14} {value}")
    print()
    for i, finding in enumerate(found, 1):
        print(f"{i}. {finding.problem}\n   -> {finding.fix}")
    print("no problems found" if not found else "\nFix the first problem, and run `jaxvision doctor` again.")
    return 1 if found else 0
