import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmax.errors import InputError
from vlmax.reporting.metrics import MetricsFile, decode, encode, read_metrics


def strict(line):
    """A parser that knows JSON and nothing else."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(line, parse_constant=refuse)


@given(st.floats())
def test_floats_read_back_bit_equal(value):
    line = encode(1, {"x": value})
    strict(line)
    back = decode(line)["x"]
    assert isinstance(back, float)
    assert math.isnan(back) if math.isnan(value) else struct.pack("d", back) == struct.pack("d", value)


@given(st.floats(width=32, allow_nan=False))
def test_float32_reads_back_bit_equal(value):
    back = np.float32(decode(encode(1, {"x": np.float32(value)}))["x"])
    assert back.tobytes() == np.float32(value).tobytes()


def test_what_a_value_may_be():
    metrics = {
        "a": jnp.bfloat16(1.1),
        "b": np.int64(3),
        "c": jnp.int32(4),
        "d": "f00d",
        "e": jnp.float32(0.1),
        "f": 2**60,
    }
    found = strict(encode(7, metrics))
    assert found == {"step": 7, "a": 1.1015625, "b": 3, "c": 4, "d": "f00d", "e": float(np.float32(0.1)), "f": 2**60}
    assert strict(encode(0, {"a": math.nan, "b": math.inf, "c": -math.inf}))["b"] == "Infinity"
    for wrong in (None, [1.0], np.ones(1), True, np.True_):
        with pytest.raises(TypeError, match="metric 'x'"):
            encode(0, {"x": wrong})
    with pytest.raises(ValueError, match="would read back as a number"):
        encode(0, {"x": "NaN"})
    with pytest.raises(ValueError, match="another name"):
        encode(0, {"step": 3})


def test_lines_are_in_the_file_at_once(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(1, {"train/loss": 0.5, "data/digest": "ab"})
    assert list(read_metrics(file.path)) == [{"step": 1, "train/loss": 0.5, "data/digest": "ab"}]
    file.close()


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (1, 2, 2, 3, 4):
        file.write(step, {"x": step / 3})
    file.close()
    before = path.read_bytes()
    MetricsFile(path, resume_step=4).close()
    assert path.read_bytes() == before
    file = MetricsFile(path, resume_step=2)
    file.write(3, {"x": 1.0})
    file.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 2, 3]
    assert path.read_bytes().startswith(before[: before.index(b'{"step": 3')])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]
    MetricsFile(path, resume_step=None).close()
    assert path.read_bytes() == b""


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 1.0}\n{"step": 2, "x":')
    assert [row["step"] for row in read_metrics(path)] == [1]
    file = MetricsFile(path, resume_step=5)
    file.write(6, {"x": 0.0})
    file.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 6]


def test_a_damaged_line_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, \n{"step": 3}\n')
    with pytest.raises(InputError, match="line 2"):
        MetricsFile(path, resume_step=3)
