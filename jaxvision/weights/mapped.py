"""A file that is mapped into memory, from which tensors are read as views."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np


class MappedFile:
    """A file that is mapped into memory.

    Args:
      file: the file, open for reading. It may be closed afterwards.

    Attributes:
      data: its bytes.
    """

    def __init__(self, file: BinaryIO):
        self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def array(self, dtype: Any, shape: Sequence[int], start: int, strides: Sequence[int] | None = None) -> np.ndarray:
        """Returns a view of the bytes from `start`; an array of its own if it is empty.

        Args:
          dtype: NumPy's dtype.
          shape: shape of the array.
          start: position of its first element in the file, in bytes.
          strides: step along each axis, in elements. Default: contiguous.
        """
        if not math.prod(shape):
            return np.empty(shape, dtype)
        if strides is None:
            return np.frombuffer(self.data, dtype, math.prod(shape), start).reshape(shape)
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        elements = np.frombuffer(self.data, dtype, span, start)
        steps = [stride * elements.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(elements, shape, steps, writeable=False)

    def forget(self, start: int, end: int) -> None:
        """Releases the memory of a range. Mapped pages that were read count toward that of this process until then."""
        start -= start % mmap.PAGESIZE
        if end > start and hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED, start, end - start)
