"""Parts of arrays out of files: the values of the whole, and no rows that no part needs."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from tests.interop.test_layout import CASES
from vlmax.interop import reading
from vlmax.interop.layout import fit
from vlmax.interop.tensors import Stored

THREE = [("D H K = (3 H K) D", (4, 2, 3), {}, 1), ("D H K = D (3 H K)", (4, 2, 3), {}, 2)]
LAYOUTS = [*((layout, own, given, 0) for layout, own, given, *_ in CASES), *THREE]


def stored(path, fitted):
    """A tensor in a file, at an address that is no multiple of anything, and its values."""
    values = np.random.default_rng(0).normal(size=fitted.foreign_shape).astype(np.float32)
    path.write_bytes(b"odd" + values.tobytes())
    return Stored(path, 3, fitted.foreign_shape, "F32"), values


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [20, 1 << 20])
@pytest.mark.parametrize(("layout", "own", "given", "part"), LAYOUTS, ids=[case[0] for case in LAYOUTS])
def test_parts_are_those_of_the_whole(layout, own, given, part, size, dtype, tmp_path, monkeypatch):
    for setting, value in (("PIECE_BYTES", size), ("ROWS", 3), ("COLUMNS", 5)):
        monkeypatch.setattr(reading, setting, value)
    fitted = fit(layout, own, given, part)
    tensor, values = stored(tmp_path / "file", fitted)
    whole = np.zeros(own, dtype)
    whole[tuple(slice(n) for n in fitted.own_shape)] = fitted.own(values).astype(dtype)
    halves = ((slice(0, n // 2), slice(n // 2, n)) for n in own)
    parts = [(np.zeros([p.stop - p.start for p in index], dtype), index) for index in itertools.product(*halves)]
    for fill in reading.fillings(parts, tensor, fitted):
        fill()
    for target, index in parts:
        np.testing.assert_array_equal(target.astype(np.float32), np.asarray(whole[index]).astype(np.float32))


def test_no_row_is_read_that_no_part_needs(tmp_path, monkeypatch):
    fitted = fit("D H K = (3 H K) D", (4, 2, 3), {}, 1)
    tensor, values = stored(tmp_path / "file", fitted)
    asked, rows = [], Stored.rows
    monkeypatch.setattr(Stored, "rows", lambda self, *ends: asked.append(ends) or rows(self, *ends))
    target = np.zeros((4, 1, 3), np.float32)
    for fill in reading.fillings([(target, (slice(0, 4), slice(1, 2), slice(0, 3)))], tensor, fitted):
        fill()
    assert asked == [(9, 12)]  # of the second of three arrays the second head
    np.testing.assert_array_equal(target, fitted.own(values)[:, 1:])


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (5, 7)])
def test_fresh_memory_is_zero_and_can_be_written(shape):
    for dtype in (np.float32, ml_dtypes.bfloat16):
        memory = reading.zeros(shape, np.dtype(dtype))
        assert memory.shape == shape and memory.dtype == dtype and not memory.any()
        memory[...] = 1
        assert memory.astype(np.float32).sum() == memory.size
        assert not memory.size or memory.ctypes.data % 64 == 0
