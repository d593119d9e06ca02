"""Huge memory pages, which shorten a training step of a convolutional network on a CPU by 28 % to 38 %.

XLA allocates its buffers again in every step, and Linux fills them in pages of 4 KiB: 184,000 in a step of
EfficientNet-Lite0 with 64 images. glibc can ask for pages of 2 MiB, but only if an environment variable says so when
the process starts.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

PAGES = Path("/sys/kernel/mm/transparent_hugepage")

_TUNABLES = "GLIBC_TUNABLES"
_RESTARTED = "JAXVISION_RESTARTED"  # holds the number of the process, which a restart keeps


def restart_with_huge_pages() -> None:
    """Restarts this process with the same arguments and with huge pages, if the system provides them on request.

    Does nothing if ``GLIBC_TUNABLES`` is set, even to an empty value, or if another program, such as a debugger, runs
    the command. Call it before anything else in the main module of a command that computes.
    """
    if os.environ.get(_RESTARTED) == str(os.getpid()):
        for name in (_RESTARTED, _TUNABLES):  # not for the processes that this one starts
            os.environ.pop(name, None)
    elif _TUNABLES not in os.environ and _is_command() and _is_available():
        settings = {_TUNABLES: "glibc.malloc.hugetlb=1", _RESTARTED: str(os.getpid())}
        with contextlib.suppress(OSError):  # then the command runs as it is
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | settings)


def _is_command() -> bool:
    """Returns whether Python was started for a command of jaxvision that computes, and for nothing else."""
    started = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]  # without the arguments of the command
    is_module = started[-2:] in (["-m", "jaxvision.main"], ["-m", "jaxvision.cli"])
    options = started[: -2 if is_module else -1]
    is_script = bool(started) and Path(started[-1]).name == "jaxvision"
    return (is_module or is_script) and all(o.startswith("-") for o in options) and not {"-h", "--help"} & set(sys.argv)


def _is_available() -> bool:
    try:
        on_request = "[madvise]" in (PAGES / "enabled").read_text()
        size = int((PAGES / "hpage_pmd_size").read_text())
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (OSError, ValueError):  # another operating system or C library
        return False
    release = tuple(int(n) for n in version.split(".")[:2])
    return on_request and size == 2 * 2**20 and library == "glibc" and release >= (2, 35) and bool(sys.executable)
