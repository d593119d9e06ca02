"""Errors that a user can fix, reported in one line.

Everything that a user can trigger (a misspelled name, a file that is not there, weights of another
architecture) raises :class:`UserError`. The consoles (`main`, `cli`) print its text as one line and
leave with status 2; in a notebook it reads as an ordinary ``ValueError``.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """An error that the user can fix. The message has what was given, what was expected, and the fix."""


class Preempted(Exception):
    """A run was stopped by SIGTERM and has saved its state. The same command resumes it."""

    #: Exit status, EX_TEMPFAIL of sysexits.h: launchers start such a run again.
    STATUS = 75


class MissingPackage(UserError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def nearest(name: str, valid: Iterable[str], *, n: int = 3) -> list[str]:
    """Returns up to `n` entries of `valid` that look like `name`, the likest first.

    >>> nearest("resnet_50", ["resnet18", "resnet50", "vit_tiny_patch16_224"], n=1)
    ['resnet50']
    """
    valid = list(valid)
    # Case is folded for the comparison only: what is offered must be spelled as it is accepted.
    folded = {v.lower(): v for v in valid}
    close = difflib.get_close_matches(str(name).lower(), folded, n=n, cutoff=0.5)
    return [folded[c] for c in close]


def unknown_name_error(what: str, name: str, valid: Iterable[str]) -> UserError:
    """Returns (does not raise) the error for a name that is not among the valid ones.

    Args:
      what: the noun, such as ``"model"`` or ``"key of create_resnet"``.
      name: what was got.
      valid: what would have been accepted. A short list is given whole, a long one by its nearest members.

    Example:
      >>> str(unknown_name_error("optimizer", "adamv", ["sgd", "adamw", "lamb"]))
      "unknown optimizer 'adamv'; did you mean 'adamw'? (valid: adamw, lamb, sgd)"
    """
    valid = sorted(set(valid))
    close = nearest(name, valid)
    hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    whole = f" (valid: {', '.join(valid)})" if len(valid) <= 24 else f" ({len(valid)} are known)"
    return UserError(f"unknown {what} {name!r}{hint}{whole}")


def missing_package_error(package: str, purpose: str, extra: str) -> MissingPackage:
    """Returns the error for an optional package that is not installed.

    Example:
      >>> str(missing_package_error("datasets", "reading the hub's data sets", "huggingface"))
      "reading the hub's data sets needs the package 'datasets'; in the checkout: pip install '.[huggingface]'"
    """
    return MissingPackage(f"{purpose} needs the package {package!r}; in the checkout: pip install '.[{extra}]'")


@contextmanager
def disk_errors_as_user_errors(folder: Path) -> Iterator[None]:
    """Turns the errors of a full or read-only disk into a `UserError`.

    Args:
      folder: what is being written, where the error itself does not name the file.

    Example:
      >>> with disk_errors_as_user_errors(Path("runs/x")):
      ...     raise OSError(errno.ENOSPC, "No space left on device")
      Traceback (most recent call last):
      ...
      jaxvision.errors.UserError: runs/x: No space left on device; what was saved before stands, ...
    """
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise
        raise UserError(
            f"{e.filename or folder}: {e.strerror}; what was saved before stands, and once that is mended the same "
            f"command goes on"
        ) from e
