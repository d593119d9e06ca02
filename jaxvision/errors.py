"""Errors that a user can fix, reported in one line.

A mistake of the user (a misspelled name, a missing file, weights of another architecture) raises `UserError`. `main`
and `cli` print its message as one line and exit with status 2. In Python it is an ordinary ``ValueError``.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_NOT_PRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# What breaks or reorders a line although it is no control code: line ends of Unicode, and changes of the direction.
_BREAKS_LINE = re.compile(r"[\t\n\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class UserError(ValueError):
    """An error that the user can fix. The message says what was given, what was expected, and how to fix it.

    Names of files in the message are made printable, and the message stays in one line, as by `printable_line`.
    """

    def __init__(self, message: str = ""):
        super().__init__(printable_line(message))


class Preempted(Exception):
    """A run was stopped by SIGTERM and has saved its state. The same command resumes it."""

    #: Exit status, EX_TEMPFAIL of sysexits.h. Launchers restart a run that exits with it.
    STATUS = 75


class MissingPackage(UserError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


def printable(text: str) -> str:
    r"""Returns a text that any file or terminal takes, with escapes for bytes that are not UTF-8 and for control codes.

    Names of files may contain any bytes. Python represents those that are not UTF-8 as lone surrogates, which cannot be
    written. Use it wherever a name leaves the process. Line ends and tabs are kept.

    >>> printable("caf\udce9.jpg"), printable("a\x1b[2J.jpg"), printable("café.jpg")
    ('caf\\xe9.jpg', 'a\\x1b[2J.jpg', 'café.jpg')
    """
    return "".join(map(_printable_character, text)) if _NOT_PRINTABLE.search(text) else text


def printable_line(text: str) -> str:
    r"""Returns a text that stays in one line: as `printable`, with escapes for line ends, tabs and bidi overrides too.

    >>> printable_line("two\nlines.jpg"), printable_line("gpj.\u202eexe")
    ('two\\nlines.jpg', 'gpj.\\u202eexe')
    """
    return _BREAKS_LINE.sub(lambda match: match[0].encode("unicode_escape").decode(), printable(text))


def count(n: int, noun: str, plural: str | None = None) -> str:
    """Returns a number of things as text.

    >>> count(1, "image"), count(1234, "image"), count(2, "class", "classes")
    ('1 image', '1,234 images', '2 classes')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message without its full stop, at most 160 characters; its type if empty.

    >>> first_line(ValueError("no such file.\\nSee the log.")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return line if len(line) <= 160 else f"{line[:160]}..."


def _printable_character(character: str) -> str:
    if not _NOT_PRINTABLE.match(character):
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents the bytes 0x80 to 0xff
        code -= 0xDC00
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def nearest(name: str, valid: Iterable[str], *, n: int = 3) -> list[str]:
    """Returns up to `n` entries of `valid` that are similar to `name`, the most similar first.

    >>> nearest("resnet_50", ["resnet18", "resnet50", "vit_tiny_patch16_224"], n=1)
    ['resnet50']
    """
    valid = list(valid)
    # Compares without case, but returns names as they are spelled, because only that spelling is accepted.
    folded = {v.lower(): v for v in valid}
    close = difflib.get_close_matches(str(name).lower(), folded, n=n, cutoff=0.5)
    return [folded[c] for c in close]


def unknown_name_error(where: str, name: str, valid: Iterable[str], *, expected: str = "", fix: str = "") -> UserError:
    """Returns (does not raise) the error for a name that is not among the valid ones.

    Args:
      where: the config key, flag or argument that has the name, such as ``"optimizer.name"``.
      name: the name that was given.
      valid: the valid names. The message suggests the nearest ones, and lists all if there are at most 24.
      expected: what the name should be, with its article, such as ``"an optimizer"``. Default: one of the valid names,
        if there are at most 24.
      fix: how to find all names, as a sentence.

    Example:
      >>> str(unknown_name_error("optimizer.name", "adamv", ["sgd", "adamw", "lamb"], expected="an optimizer"))
      "optimizer.name: got 'adamv', expected an optimizer. Did you mean 'adamw'? Valid names: 'adamw', 'lamb', 'sgd'."
      >>> str(unknown_name_error("dtype", "double", ["float32", "bfloat16"]))
      "dtype: got 'double', expected one of 'bfloat16', 'float32'."
    """
    valid = sorted(set(valid))
    listed = ", ".join(map(repr, valid)) if len(valid) <= 24 else ""
    close = nearest(name, valid)
    sentences = [
        f"{where}: got {name!r}, expected {expected or f'one of {listed}'}.",
        f"Did you mean {' or '.join(map(repr, close))}?" if close else "",
        f"Valid names: {listed}." if expected and listed else "",
        fix,
    ]
    return UserError(" ".join(filter(None, sentences)))


def missing_package_error(package: str, purpose: str, extra: str) -> MissingPackage:
    """Returns the error for an optional package that is not installed.

    Example:
      >>> str(missing_package_error("libtpu", "compiling for a TPU", "tpu"))
      "compiling for a TPU needs the package 'libtpu'. Install it in the checkout: pip install '.[tpu]'"
    """
    return MissingPackage(
        f"{purpose} needs the package {package!r}. Install it in the checkout: pip install '.[{extra}]'"
    )


def is_lost_connection(error: BaseException) -> bool:
    """Returns whether JAX raised an error because the communication with another process failed.

    JAX raises several classes for it, so the text decides: a status of gRPC, and a word for communication.

    >>> is_lost_connection(ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"))
    True
    >>> is_lost_connection(RuntimeError("the database refused the connection"))
    False
    """
    text = str(error)
    has_status = re.search(r"\b(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ", text)
    return bool(has_status and re.search(r"Gloo|NCCL|UNAVAILABLE|onnection|eartbeat", text))


@contextmanager
def disk_errors_as_user_errors(folder: Path) -> Iterator[None]:
    """Raises the errors of a full, read-only or failing disk as a `UserError`.

    Does the same for a file in `folder` where a folder is expected, and for a folder where a file is expected.

    Args:
      folder: the folder that is written; named in the message if the error itself does not name a file.

    Example:
      >>> with disk_errors_as_user_errors(Path("runs/x")):
      ...     raise OSError(errno.ENOSPC, "No space left on device")
      Traceback (most recent call last):
      ...
      jaxvision.errors.UserError: runs/x: No space left on device. Files that were saved before are intact. ...
    """
    try:
        yield
    except OSError as e:
        file = e.filename2 or e.filename  # of a file that is renamed into place, the place
        is_inside = isinstance(file, str) and Path(file).absolute().is_relative_to(folder.absolute())
        if e.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST) and is_inside:
            raise UserError(f"{file}: {e.strerror}. Remove it, and run the same command again.") from e
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise
        raise UserError(
            f"{e.filename or folder}: {e.strerror}. Files that were saved before are intact. Fix the disk or the "
            "permissions, and run the same command again."
        ) from e


@contextmanager
def memory_errors_as_user_errors(fix: str) -> Iterator[None]:
    """Raises XLA's error for a device without enough memory as a `UserError`.

    XLA raises it when it compiles, when it runs a program, or when a result is fetched.

    Args:
      fix: what takes less memory, as sentences.

    Example:
      >>> import jax
      >>> with memory_errors_as_user_errors("Set a smaller data.batch_size."):
      ...     raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 70368744177664 bytes.")
      Traceback (most recent call last):
      ...
      jaxvision.errors.UserError: out of memory: a device has too little for this (RESOURCE_EXHAUSTED: Out of memory
      allocating 70368744177664 bytes). Set a smaller data.batch_size.
    """
    try:
        yield
    except RuntimeError as e:
        # By its name, because a process without JAX comes here as well.
        if type(e).__name__ not in ("JaxRuntimeError", "XlaRuntimeError") or "RESOURCE_EXHAUSTED" not in str(e):
            raise
        reason = str(e)[str(e).index("RESOURCE_EXHAUSTED") :].splitlines()[0][:300].rstrip(".")
        raise UserError(f"out of memory: a device has too little for this ({reason}). {fix}") from e
