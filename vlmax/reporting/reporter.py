"""One object to which a run tells its figures; it passes them to console, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vlmax.reporting.console import Console
from vlmax.reporting.metrics import MetricsFile, Value
from vlmax.reporting.pictures import contact_sheet
from vlmax.reporting.tensorboard import TensorBoard


class Reporter:
    """Writes on process 0; on the others every method does nothing.

    Args:
      directory: the run's directory, which exists.
      total_steps: where the run ends.
      resume_step: last step of the checkpoint that the run goes on from, or None where it starts anew: later figures,
        from an attempt that died, are dropped. Write a step's metrics before its checkpoint, and none is ever missing.
      tensorboard: whether TensorBoard gets them too.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        total_steps: int,
        resume_step: int | None = None,
        *,
        tensorboard: bool = True,
    ) -> None:
        self._directory = Path(directory)
        self._console: Console | None = None
        self._tensorboard: TensorBoard | None = None
        if jax.process_index() == 0:
            self._metrics = MetricsFile(self._directory / "metrics.jsonl", resume_step)
            self._tensorboard = TensorBoard(self._directory, resume_step) if tensorboard else None
            self._console = Console(total_steps)

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """The figures of one step: numbers already on the host, or short texts such as `data/digest`."""
        if self._console is not None:
            self._metrics.write(step, metrics)
            self._console.write(step, metrics)
        if self._tensorboard is not None:
            self._tensorboard.write(step, metrics)

    def message(self, text: str) -> None:
        """A line on the console."""
        if self._console is not None:
            self._console.message(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table on the console."""
        if self._console is not None:
            self._console.table(title, columns, rows)

    def first_batch(self, images: UInt8[np.ndarray, "B height width 3"], texts: Sequence[str], step: int = 0) -> None:
        """The first batch as it reaches the model: `first_batch.png` and TensorBoard.

        Args:
          images: after every transform, before normalisation.
          texts: decoded from the very tokens that the model gets, one an image.
          step: where it stands in TensorBoard.
        """
        if self._console is not None:
            sheet = contact_sheet(images, texts)
            Image.fromarray(sheet).save(self._directory / "first_batch.png")
            if self._tensorboard is not None:
                self._tensorboard.picture("first_batch/images", step, sheet)
                self._tensorboard.texts("first_batch/texts", step, texts)

    def close(self) -> None:
        """Writes what is left. Call it at the end, also after an error."""
        if self._console is not None:
            self._console.close()
            self._metrics.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
