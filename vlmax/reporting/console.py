"""The console: a live progress line on a terminal, a plain line now and then elsewhere, and tables."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from vlmax.reporting.metrics import Value

_PLAIN_WIDTH = 120  # logs and pipes have no width of their own


class Console:
    """What a person sees of a run.

    Args:
      total_steps: where the run ends.
      file: another stream than standard output.
      live: whether the progress line is drawn anew in place; None asks the stream whether it is a terminal.
      interval_seconds: how often a plain line is printed where there is no terminal.
      clock: seconds; another in tests.
    """

    def __init__(
        self,
        total_steps: int,
        file: IO[str] | None = None,
        live: bool | None = None,
        interval_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rich = RichConsole(file=file, force_terminal=live, highlight=False)
        self._live = self._rich.is_terminal
        if not self._live:
            self._rich = RichConsole(file=file, force_terminal=False, highlight=False, width=_PLAIN_WIDTH)
        self._total, self._interval, self._clock = total_steps, interval_seconds, clock
        self._pace = collections.deque[tuple[float, int]](maxlen=64)
        self._printed = -float("inf")
        self._shown: dict[str, Value] = {}
        self._progress: Progress | None = None

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Moves the progress line to `step`; scores (`eval/...`) get lines of their own."""
        scores = {name: value for name, value in metrics.items() if name.startswith("eval/")}
        if scores:
            told = "  ".join(f"{name.removeprefix('eval/')} {_short(value)}" for name, value in scores.items())
            self.message(f"step {step}  {told}")
        if len(scores) == len(metrics):
            return
        self._shown.update(metrics)
        now = self._clock()
        if not self._pace or step > self._pace[-1][1]:
            self._pace.append((now, step))
        if self._live:
            self._draw(step)
        elif now - self._printed >= self._interval or step >= self._total:
            self._printed = now
            self._rich.print(Text(f"step {step}/{self._total}  {self._figures(step)}"), soft_wrap=True)

    def _figures(self, step: int) -> str:
        shown, parts = self._shown, []
        if "train/loss" in shown:
            parts.append(f"loss {_short(shown['train/loss'])}")
        if "train/examples_per_second" in shown:
            parts.append(f"{float(shown['train/examples_per_second']):,.1f} examples/s")
        if "train/input_wait_share" in shown:
            parts.append(f"input wait {float(shown['train/input_wait_share']):.1%}")
        parts.append(f"ETA {self._eta(step)}")
        return "  ".join(parts)

    def _eta(self, step: int) -> str:
        # From written step to written step: start-up and compilation, before the first, say nothing about the pace.
        (began, first), (now, last) = self._pace[0], self._pace[-1]
        if last == first:
            return "-:--:--"
        left = round((self._total - step) * (now - began) / (last - first))
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"

    def _draw(self, step: int) -> None:
        if self._progress is None:
            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
            )
            self._progress = Progress(*columns, console=self._rich, refresh_per_second=4)
            self._progress.add_task("", total=self._total)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=step, description=self._figures(step))

    def message(self, text: str) -> None:
        """One message, printed above the progress line."""
        self._rich.print(Text(text), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; columns whose every entry is a number are set to the right.

        Raises:
          ValueError: a row does not have one entry a column.
        """
        wrong = [row for row in rows if len(row) != len(columns)]
        if wrong:
            raise ValueError(f"table {title!r} has {len(columns)} columns, but a row is {wrong[0]!r}")
        table = Table(title=title, title_justify="left", title_style="bold")
        for i, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_short(entry)) for entry in row))
        self._rich.print(table)

    def close(self) -> None:
        """Leaves the progress line as it is and stops drawing."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _short(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
