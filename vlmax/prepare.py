"""`python -m vlmax.prepare --source SPEC --out DIR`: a TFDS data set of any source; `--check` reads one."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlmax.data.checking import Report, check
from vlmax.data.parallel import Work
from vlmax.data.preparing import prepare
from vlmax.data.sources.open import FORMS
from vlmax.data.sources.options import Options
from vlmax.data.splits import Plan
from vlmax.errors import EXIT_INPUT, InputError, exit_codes


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Turns any source into a TFDS data set of ArrayRecord files, which `tfds` and vlmax both read.

    Stop it at any moment and run it again: it goes on where it was, and gives the same bytes. With --check it only
    reads the source, reports what is wrong with it, and leaves with 2 where anything is.

    Attributes:
      source: where the records are; the forms are at the end.
      out: the data set's folder; with --check, where quarantine.jsonl goes.
      name: what the data set is called; by default as its folder.
      split: what the split is called.
      shards: how many files; by default of about 256 MiB, at most 20,000 records each.
      workers: how many processes; by default one a core.
      max_records: reads only the first ones.
      max_damaged: the largest share of damaged records that is let pass; they are left out.
      decode: decodes every image, and leaves out what cannot be decoded.
      check: reports instead of writing.
      reading: how the source is read.
    """

    source: str
    out: Path | None = None
    name: str | None = None
    split: str = "train"
    shards: int | None = None
    workers: int | None = None
    max_records: int | None = None
    max_damaged: float = 0.1
    decode: bool = True
    check: bool = False
    reading: Annotated[Options, tyro.conf.OmitArgPrefixes] = Options()


DESCRIPTION = f"{(Arguments.__doc__ or '').split('Attributes:')[0].strip()}\n\nSources: {FORMS}"


def main(arguments: list[str] | None = None) -> None:
    """The front door; leaves with 2 where the input is wrong."""
    with exit_codes():
        args = tyro.cli(Arguments, prog="python -m vlmax.prepare", description=DESCRIPTION, args=arguments)
        work = Work(args.source, args.reading.of(args.source))
        workers = args.workers or os.cpu_count() or 1
        if args.check:
            sys.exit(_check(args, work, workers))
        if args.out is None:
            raise InputError("--out is missing: the folder to write the data set into (or --check, to read only)")
        _prepare(args, args.out, work, workers)


def _prepare(args: Arguments, out: Path, work: Work, workers: int) -> None:
    console = Console()
    with _progress(console) as progress:
        bar = progress.add_task("preparing", total=None)
        before = 0

        def start(plan: Plan, done: int) -> None:
            nonlocal before
            before = done
            progress.update(bar, total=plan.records, completed=done)
            if done:
                console.print(f"going on: {done:,} of {plan.records:,} records are done")

        made = prepare(
            work,
            out,
            args.name,
            args.split,
            args.shards,
            workers,
            args.max_records,
            args.max_damaged,
            args.decode,
            tick=lambda done: progress.update(bar, completed=before + done),
            start=start,
        )
    console.print(
        f"{made.out}: {made.plan.name} {made.plan.split}, {made.written:,} records in {made.plan.shards} files, "
        f"{made.bytes / 2**20:,.1f} MiB; {made.damaged:,} damaged"
        + (f", see {made.out / 'quarantine.jsonl'}" if made.damaged else ""),
        soft_wrap=True,
    )


def _check(args: Arguments, work: Work, workers: int) -> int:
    console = Console()
    with _progress(console) as progress:
        bar = progress.add_task("checking", total=None)
        report = check(work, workers, args.max_records, lambda done, of: progress.update(bar, completed=done, total=of))
    print_report(report, console)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(d, ensure_ascii=False) + "\n" for d in report.damaged]
        (args.out / "quarantine.jsonl").write_text("".join(lines), encoding="utf-8")
    return 0 if report.fine else EXIT_INPUT


def print_report(report: Report, console: Console) -> None:
    """Prints what a source is like, and the first of each thing that is wrong."""

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    line(f"{report.records:,} records, {len(report.damaged):,} damaged")
    for name, spread in report.images.items():
        if spread:
            line(f"image {name}: " + ", ".join(f"{v:g}" for v in spread) + "  (least, 5 %, median, 95 %, largest)")
    if report.texts:
        line(f"text characters: {', '.join(f'{v:g}' for v in report.texts)}; {report.texts_per_record:.2f} a record")
    wrong = {
        "damaged": [f"{d['key']}: {d['reason']}" for d in report.damaged],
        "empty text": report.empty,
        "no text": report.without,
    }
    for what, found in wrong.items():
        if found:
            line(f"{what}: {len(found):,}")
            for one in found[:20]:
                line(f"  {one}")
    keys, number = report.duplicates
    if number:
        line(f"keys that several records have: {number:,}")
        for key, count in keys.items():
            line(f"  {key}: {count} records")
    line("fine" if report.fine else "something is wrong")


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console)


if __name__ == "__main__":
    main()
