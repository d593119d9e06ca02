"""What the commands print about the weights that they load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.photos import NAME, needs_lite0

from jaxvision.weights import packages


@needs_lite0
@pytest.mark.parametrize("is_given", [True, False])
def test_a_note_names_the_library_of_a_file_that_the_user_gives(is_given: bool, tmp_path: Path) -> None:
    """Not of the pretrained weights, whatever file they are in."""
    file = packages.find(NAME)
    arguments = ["--checkpoint", str(file)] if is_given else []
    command = [sys.executable, "-m", "jaxvision.cli", "convert", NAME, str(tmp_path / "out"), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    note = f"note: {file}: has the names of efficientnet-pytorch; converted to timm's\n"
    assert process.stderr == (note if is_given else "")
