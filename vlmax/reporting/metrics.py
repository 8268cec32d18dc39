"""`metrics.jsonl`: one flat JSON object a line, one consistent history over all attempts of a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from vlmax.errors import InputError

Value = float | int | str
"""What a metric may be: a number, or a short text such as the digest of a step's examples."""

# JSON has no such numbers; as strings they keep every line valid for every parser, and float() reads them back.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(step: int, metrics: Mapping[str, Value]) -> str:
    """One line of `metrics.jsonl`, without the line break.

    Floats (float32 and bfloat16 scalars too) are written as the shortest decimal that reads back to the same bits.
    Not-a-number and the infinities are the strings "NaN", "Infinity" and "-Infinity".

    Raises:
      TypeError: a value is neither a number nor a string.
      ValueError: the key `step`, or a text that would read back as a number.
    """
    line: dict[str, Value] = {"step": int(step)}
    for key, value in metrics.items():
        if key == "step":
            raise ValueError("'step' is the key of the step itself; a metric needs another name")
        line[key] = _plain(key, value)
    return json.dumps(line, allow_nan=False)


def _plain(key: str, value: object) -> Value:
    if isinstance(value, str):
        if value in _NOT_FINITE:
            raise ValueError(f"metric {key!r}: the text {value!r} would read back as a number")
        return value
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, bool) or kind == "b" or getattr(value, "shape", ()) != ():
        raise TypeError(f"metric {key!r} is {value!r}; it must be one number or a string")
    if isinstance(value, int) or kind in ("i", "u"):
        return int(cast(Any, value))
    try:
        number = float(cast(Any, value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metric {key!r} is {value!r}; it must be one number or a string") from error
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def decode(line: str | bytes) -> dict[str, Value]:
    """The object of one line; the strings for not-a-number and the infinities are floats again."""
    found = json.loads(line)
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        raise ValueError("not an object with an integer 'step'")
    return {key: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in found.items()}


def read_metrics(path: str | os.PathLike[str]) -> Iterator[dict[str, Value]]:
    """The lines of a metrics file in order. A last line that a killed process left unfinished is passed over.

    Raises:
      InputError: a line before the last cannot be read.
    """
    for row, _ in _rows(Path(path)):
        yield row


def _rows(path: Path) -> Iterator[tuple[dict[str, Value], bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # each line is one write that ends in a line break: this one was cut off
            try:
                yield decode(line), line
            except ValueError as error:
                raise InputError(
                    f"reading {path}, line {number}: {error}. The file is damaged; repair or move it "
                    "(the run itself does not depend on it)"
                ) from error


class MetricsFile:
    """Appends to `metrics.jsonl`; each line is one unbuffered write, so a killed process loses none it wrote.

    Opening it for a run that goes on from `resume_step` drops the lines of later steps, which an earlier attempt wrote
    and which will be made again. Lines of `resume_step` itself stay. The rewrite is atomic.

    Args:
      path: the file, on a local or mounted disk.
      resume_step: last step that counts; None for a run that starts anew, which drops every line.
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int | None = None) -> None:
        self.path = Path(path)
        if self.path.exists():
            self._keep_until(-1 if resume_step is None else resume_step)
        self._file = self.path.open("ab", buffering=0)

    def _keep_until(self, step: int) -> None:
        kept = [line for row, line in _rows(self.path) if int(row["step"]) <= step] if step >= 0 else []
        if sum(map(len, kept)) == self.path.stat().st_size:
            return
        beside = self.path.with_name(self.path.name + ".partial")
        with beside.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Appends one line; see `encode` for what a value may be."""
        line = encode(step, metrics).encode() + b"\n"
        written = self._file.write(line)
        if written != len(line):
            raise OSError(f"writing {self.path}: only {written} of {len(line)} bytes written; is the disk full?")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
