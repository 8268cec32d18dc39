"""TensorBoard event files, through tensorboardX (no TensorFlow)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from vlmax.reporting.metrics import Value


class TensorBoard:
    """Writes scalars, one picture or text at a time.

    Args:
      directory: the run's directory.
      resume_step: last step that counts; TensorBoard then hides what an earlier attempt wrote for later ones.
    """

    def __init__(self, directory: str | os.PathLike[str], resume_step: int | None = None) -> None:
        first = 0 if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(logdir=os.fspath(directory), purge_step=first)

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """The numbers among `metrics` as scalars; texts belong to metrics.jsonl."""
        for name, value in metrics.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, float(value), step)

    def picture(self, name: str, step: int, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """One picture."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def texts(self, name: str, step: int, texts: Sequence[str]) -> None:
        """Texts as a numbered list, shown as they are and not as Markdown."""
        lines = "\n".join(f"{i}: {' '.join(text.split())}" for i, text in enumerate(texts))
        self._writer.add_text(name, "\n".join("    " + line for line in lines.splitlines()), step)

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()
