"""Reading and checking of the examples of a source."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np

from jaxvision.augment.decoding import decode
from jaxvision.augment.host import check_image
from jaxvision.data.source import Example, Source
from jaxvision.errors import UserError

_NO_MEMORY = "Set data.workers or data.batch_size lower. If this image alone fails, remove it."
_TOO_MANY_FILES = "Raise the limit with: ulimit -n 65536"
_NO_SPACE = "Free space on the disk."
_DISK = "Check the disk and the network, and run the same command to resume. If this image alone fails, remove it."
_KEY = "Log in to the network disk or unlock the folder again, and run the same command to resume."

# Errors of the machine, its disks and its network, by name because not every system has them all -> what to do.
_ADVICE = {
    getattr(errno, name): advice
    for names, advice in (
        ("ENOMEM", _NO_MEMORY),
        ("EMFILE ENFILE", _TOO_MANY_FILES),
        ("ENOSPC EDQUOT", _NO_SPACE),
        ("EIO EREMOTEIO ENXIO ENODEV ENOMEDIUM EUCLEAN EBADMSG ESTALE", _DISK),  # EUCLEAN: a damaged file system
        ("ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED", _KEY),
        ("EAGAIN ENOBUFS ENOLINK ENONET ECOMM EREMCHG ETIME ETIMEDOUT ENOTCONN ESHUTDOWN EPIPE", _DISK),
        ("ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH ENETDOWN ENETRESET ENETUNREACH", _DISK),
    )
    for name in names.split()
    if hasattr(errno, name)
}


@contextmanager
def machine_errors_as_user_errors(source: Source, index: int) -> Iterator[None]:
    """Raises `UserError` for errors that are not the fault of the image at `index`. Others pass through.

    Too little memory, too many open files, a failing disk or network: skipping images would hide it, and train on what
    is left.
    """
    try:
        yield
    except MemoryError as e:
        raise UserError(f"{source.where(index)}: got too little memory to read the image. {_NO_MEMORY}") from e
    except OSError as e:
        if advice := _ADVICE.get(e.errno or 0):
            raise UserError(f"{source.where(index)}: cannot be read: {e.strerror or e}. {advice}") from e
        raise


def read_examples(source: Source, indices: Sequence[int]) -> list[Example | OSError]:
    """Returns the examples at `indices`, with the error in place of an example that cannot be read.

    Raises:
      UserError: the machine failed, as for `machine_errors_as_user_errors`.
    """
    if hasattr(source, "__getitems__"):  # faster, for sources that have it
        with suppress(OSError, MemoryError):  # of one of them; which one shows when they are read one by one
            return list(source.__getitems__(indices))
    found: list[Example | OSError] = []
    for index in indices:
        try:
            with machine_errors_as_user_errors(source, index):
                found.append(source[index])
        except OSError as e:
            found.append(e)
    return found


def read_pixels(source: Source, index: int) -> np.ndarray:
    """Returns one image of a source, decoded, as uint8 [h, w, c].

    Raises:
      BadImage, OSError: the image is damaged or missing.
      UserError: as for `to_pixels`, or the machine failed, as for `machine_errors_as_user_errors`.
    """
    with machine_errors_as_user_errors(source, index):
        return to_pixels(source[index]["image"])


def check_labels(source: Source, indices: np.ndarray, labels: np.ndarray) -> None:
    """Raises `UserError` if one of `labels`, those of the examples at `indices`, is not the number of a class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(source.classes)))
    if len(wrong):
        where, label, n = source.where(int(indices[wrong[0]])), labels[wrong[0]], len(source.classes)
        raise UserError(
            f"{where}: got the label {label}, expected 0 to {n - 1} for {n} classes. Fix the label or the classes."
        )


def to_pixels(image: bytes | np.ndarray) -> np.ndarray:
    """Returns an image, decoded if it is a file, as uint8 [h, w, c].

    Raises:
      BadImage: the file is damaged or not an image.
      UserError: an array of another type or shape.
    """
    if not isinstance(image, np.ndarray):
        return np.asarray(decode(image))
    check_image(image)
    return image
