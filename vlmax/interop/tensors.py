"""Tensors in files: their names, shapes and dtypes at once, their values only where they are asked for."""

from __future__ import annotations

import dataclasses
import math
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
        """Rows of the first dimension, mapped from the file: only what is looked at is read."""
        inner = math.prod(self.shape[1:])
        shape, dtype = (stop - start, *self.shape[1:]), DTYPES[self.dtype]
        if not math.prod(shape):
            return np.empty(shape, dtype)
        return np.memmap(self.path, dtype, "r", self.offset + start * inner * dtype.itemsize, shape)

    def values(self) -> np.ndarray:
        """The whole tensor, mapped from the file."""
        if not self.shape:
            return np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, (1,))[0]
        return self.rows(0, self.shape[0])


Tensors = Mapping[str, Stored]


def check_floating(tensors: Tensors) -> None:
    """Raises InputError: a tensor holds no floating-point numbers that can be read, such as quantised ones."""
    wrong = [f"{name} ({stored.dtype})" for name, stored in tensors.items() if not is_floating(stored.dtype)]
    if wrong:
        raise InputError(
            f"reading weights: {len(wrong)} tensors are not float32, float16, bfloat16 or float64, the first {wrong[0]}; "
            "a checkpoint in fewer bits cannot be read: take the one that it was made from"
        )


def is_floating(dtype: str) -> bool:
    """Whether it is one of the floating-point dtypes that can be read."""
    return dtype in ("F64", "F32", "F16", "BF16")
