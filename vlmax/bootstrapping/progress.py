"""What bootstrapping prints: a bar while it works, and a table at its end; on process 0 alone."""

from __future__ import annotations

import jax
import rich.progress
from rich.console import Console
from rich.table import Table

from vlmax.bootstrapping.report import Report
from vlmax.data.splits import Prepared


class Progress:
    """A bar over the records; use as a context manager."""

    def __init__(self, records: int):
        columns = (
            rich.progress.TextColumn("judging"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        self._bar = rich.progress.Progress(*columns, disable=jax.process_index() != 0)
        self._task = self._bar.add_task("judging", total=records)

    def tick(self, done: int) -> None:
        """So many records are done, those of earlier runs included."""
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()


def show(made: Prepared, report: Report, console: Console | None = None) -> None:
    """Prints the figures and where everything lies."""
    console = console or Console()
    table = Table(title="texts")
    for column in ("origin", "texts", "kept", "dropped", "noise ratio", "empty"):
        table.add_column(column, justify="left" if column == "origin" else "right")
    for origin, t in report.origins.items():
        figures = (t.texts, t.texts - t.dropped, t.dropped)
        table.add_row(origin, *(f"{n:,}" for n in figures), f"{t.noise_ratio:.1%}", f"{t.empty:,}")
    console.print(table)
    told = [f"{report.records:,} records judged", f"{report.without:,} kept no text and are left out"]
    told += [f"{report.damaged:,} damaged, see {made.out / 'quarantine.jsonl'}"] if report.damaged else []
    told += [f"{report.not_judged:,} texts beyond --max-texts were not judged"] if report.not_judged else []
    console.print("; ".join(told), soft_wrap=True)
    console.print(f"{made.out}: {made.plan.name} {made.plan.split}, {made.written:,} records", soft_wrap=True)
    console.print(f"report: {made.out / f'report-{made.plan.split}.html'}", soft_wrap=True)
