"""The cache of compiled programs that the commands share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.paths import TESTS

PHOTO = TESTS / "images" / "n07873807_pizza.jpg"


def predict(home: Path, *arguments: str, **variables: str) -> str:
    """Runs ``jaxvision predict`` with a cache folder of its own, and returns its standard error."""
    kept = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    kept |= {"HF_HOME": str(PHOTO.parent), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # on any machine
    done = subprocess.run(
        [sys.executable, "-m", "jaxvision.cli", "predict", "-m", "tf_efficientnet_lite0.in1k", str(PHOTO), *arguments],
        env=kept | {"XDG_CACHE_HOME": str(home), **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pizza" in done.stdout
    return done.stderr


def programs(home: Path) -> dict[str, int]:
    """Returns the time of the last change of each program that is kept."""
    return {path.name: path.stat().st_mtime_ns for path in home.glob("jaxvision/programs/*/*-cache")}


def last_uses(home: Path) -> dict[str, int]:
    """Returns the time of the last use of each program, as JAX writes it."""
    return {path.name: int.from_bytes(path.read_bytes(), "little") for path in home.rglob("*-atime")}


def test_a_second_command_uses_the_programs_of_the_first(tmp_path: Path) -> None:
    assert predict(tmp_path) == ""
    first = programs(tmp_path)
    assert first
    used = last_uses(tmp_path)
    assert predict(tmp_path) == ""
    assert programs(tmp_path) == first  # nothing was compiled again
    assert all(time > used[name] for name, time in last_uses(tmp_path).items())


def test_a_program_that_was_not_written_completely_is_compiled_again(tmp_path: Path) -> None:
    """A process that is killed leaves a part of a program, without the time of its last use."""
    predict(tmp_path)
    (program,) = tmp_path.glob("jaxvision/programs/*/*predict*-cache")
    complete = program.read_bytes()
    program.write_bytes(complete[:1000])
    program.with_name(program.name.replace("-cache", "-atime")).unlink()
    assert predict(tmp_path) == ""
    assert len(program.read_bytes()) > 1000


def test_nothing_is_kept_with_the_flag(tmp_path: Path) -> None:
    assert predict(tmp_path, "--no-compilation-cache") == ""
    assert not programs(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert predict(tmp_path / "file") == ""


def test_a_cache_of_the_user_is_used_instead(tmp_path: Path) -> None:
    predict(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert list((tmp_path / "own").glob("*predict*"))
    assert not programs(tmp_path / "home")
