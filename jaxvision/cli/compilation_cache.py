"""The cache of compiled programs, with which a command that ran before starts in seconds."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
from pathlib import Path

from jaxvision.disk import cache_folder, hold_lock

SIZE = 2 * 2**30  # bytes; JAX removes the programs that were not used for the longest time
SHORTEST = 0.3  # seconds of compilation below which a program is not kept


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that `use_compilation_cache` reads."""
    parser.add_argument(
        "--no-compilation-cache",
        action="store_false",
        dest="compilation_cache",
        help="compile everything again, and keep no compiled programs. By default they are kept in "
        f"{cache_folder('programs')}, up to {SIZE / 2**30:g} GiB",
    )


def use_compilation_cache(arguments: argparse.Namespace) -> None:
    """Makes JAX keep compiled programs, and use those that it kept, unless the arguments say otherwise.

    To be called before JAX is imported. JAX's own environment variables, such as ``JAX_COMPILATION_CACHE_DIR``, take
    precedence. Processes that the command starts inherit the settings.
    """
    if not arguments.compilation_cache:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    folder = cache_folder("programs") / _processor()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not _is_usable(folder):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(SIZE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(SHORTEST))


def _is_usable(folder: Path) -> bool:
    """Creates the folder, removes what a killed process left in it, and returns whether files can be written there."""
    with hold_lock(folder / ".lockfile") as is_held:  # JAX's lock, which it holds while it writes
        # JAX writes a program and then the time of its last use. It would fail at a program without that file.
        for program in folder.glob("*-cache") if is_held else ():
            if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                program.unlink()
    return is_held and os.access(folder, os.W_OK)


def _processor() -> str:
    """Returns a name for processors with the same instructions.

    Machines that share a home folder may have different ones, and JAX's key for a program does not include them.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
