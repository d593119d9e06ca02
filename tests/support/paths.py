"""Where the repository and the shared data are."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


def shared_folder() -> Path:
    """Returns the folder of real data that some tests need."""
    return Path(os.environ.get("JAXVISION_SHARED", ROOT.parent / "shared"))
