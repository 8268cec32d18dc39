"""Tensors in files: their names, shapes and dtypes at once, their values only where they are asked for."""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from vlmax.errors import InputError

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""What safetensors calls the dtypes that NumPy has."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file: contiguous, the last dimension fastest, little-endian.

    Attributes:
      path: the file.
      offset: of its first byte in the file.
      shape: of the tensor.
      dtype: as safetensors calls it; one that `DTYPES` lacks cannot be read.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of the first dimension, mapped from the file; the kernel begins to read them."""
        shape, dtype = (stop - start, *self.shape[1:]), DTYPES[self.dtype]
        return self._mapped(start * math.prod(self.shape[1:]), math.prod(shape), dtype).reshape(shape)

    def values(self) -> np.ndarray:
        """The whole tensor, mapped from the file."""
        return self._mapped(0, self.size, DTYPES[self.dtype]).reshape(self.shape)

    def _mapped(self, start: int, count: int, dtype: np.dtype) -> np.ndarray:
        """Values from the one at `start` on, one after the other."""
        if not count:
            return np.empty(0, dtype)
        begin = self.offset + start * dtype.itemsize
        before = begin % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            pages = mmap.mmap(
                file.fileno(), before + count * dtype.itemsize, access=mmap.ACCESS_READ, offset=begin - before
            )
        pages.madvise(mmap.MADV_WILLNEED)
        return np.frombuffer(pages, dtype, count, before)


Tensors = Mapping[str, Stored]


def check_floating(tensors: Tensors) -> None:
    """Raises InputError: a tensor holds no floating-point numbers that can be read, such as quantised ones."""
    wrong = [name for name, stored in tensors.items() if not is_floating(stored.dtype)]
    if wrong:
        first = tensors[wrong[0]]
        raise InputError(
            f"reading {first.path}: {len(wrong)} tensors are not float32, float16, bfloat16 or float64, the first "
            f"{wrong[0]} ({first.dtype}); a checkpoint in fewer bits cannot be read: take the one it was made from"
        )


def is_floating(dtype: str) -> bool:
    """Whether it is one of the floating-point dtypes that can be read."""
    return dtype in ("F64", "F32", "F16", "BF16")
