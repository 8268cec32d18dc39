"""Any image-text source as a new data set whose texts a captioner has added to and a filter has gone through.

Records are read in shards, each made of whole batches. All processes judge a shard together, each with the rows that
its devices hold; one of them then reads its pictures once more and writes it, while the next shards are judged. A
finished shard is never done again, so that the work can be stopped at any moment and started anew, on as many hosts as
there are then. What is drawn depends on the record's number and the size of a batch alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from vlmax.bootstrapping.judging import Judge, Verdicts
from vlmax.bootstrapping.records import FIELD, BootstrappedReader, Row, provenance_path, write_provenance
from vlmax.data import splits
from vlmax.data.example import BadRecord, Example, Reader, Source
from vlmax.data.order import hashed
from vlmax.data.pipeline import EvaluationPipeline
from vlmax.data.shard_writer import Shard, read_state, write_shard
from vlmax.data.splits import Plan, Prepared
from vlmax.data.tf_examples import OWN, Kind
from vlmax.errors import InputError, RunFailed
from vlmax.evaluation.features import batch_spec, check_batch_size

SAMPLE = 64  # records among which a sound one is looked for


@dataclasses.dataclass(frozen=True)
class Asked(Plan):
    """What a bootstrapped split is made of; the same gives the same set.

    Attributes:
      captioner: the run that writes, and its step.
      filter: the run that judges, and its step.
      prompt: what the captioner goes on from.
      settings: how it writes, in words.
      threshold: the least score of a text that is kept.
      texts: the most texts of a record that are judged.
      batch_size: of the models; drawn texts depend on it.
      seed: of the drawn texts.
      fields: the record's fields that go along, joined by a space.
    """

    captioner: str
    filter: str
    prompt: str
    settings: str
    threshold: float
    texts: int
    batch_size: int
    seed: int
    fields: str


def sizes(records: int, batch_size: int, shard_records: int) -> tuple[int, list[int]]:
    """The number of shards and their ends, in whole batches but for the last; raises `InputError` for sizes below 1."""
    if records < 1 or batch_size < 1 or shard_records < 1:
        told = f"{records} records (--max-records), --batch-size {batch_size}, --shard-records {shard_records}"
        raise InputError(f"{told}: each must be at least 1")
    each = math.ceil(shard_records / batch_size) * batch_size
    count = math.ceil(records / each)
    return count, [min(i * each, records) for i in range(count + 1)]


def bootstrap(
    source: Source,
    judge: Judge,
    asked: Asked,
    ends: Sequence[int],
    out: Path,
    mesh: Mesh,
    *,
    workers: int = 0,
    threads: int = 1,
    max_damaged: float = 0.1,
    tick: Callable[[int], None] = lambda done: None,
) -> Prepared | None:
    """Writes the split, or what is missing of it; gives what was made to process 0.

    Every process calls it alike, and sees the same folder.

    Args:
      source: pictures with texts.
      judge: captioner and filter.
      asked: what is made.
      ends: see `sizes`.
      out: the data set's folder.
      mesh: batches are sharded over its `data` and `fsdp` axes.
      workers: processes of each host that read and decode; 0: one thread of this one.
      threads: threads in each of them.
      max_damaged: the largest share of damaged records that is let pass.
      tick: is called with the number of records that are judged.

    Raises:
      InputError: `out` holds something else or is not shared by the processes, a source or field is missing, too many
        records are damaged, or the disk is full.
      RunFailed: another process found one of these.
    """
    check_batch_size("bootstrap", asked.batch_size, mesh)
    reader, fields = source.open(), asked.fields.split()
    check_fields(reader, fields)
    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(splits.only_one(out)))
        on_first(lambda: splits.begin(out, asked, _kinds(fields)))
        _check_shared(out, asked)
        shards = splits.shards(out, asked, splits.planned_kinds(out, asked.split), ends)
        missing = _agreed([not _done(out, asked, number, shard) for number, shard in enumerate(shards)])
        tick(sum(s.stop - s.start for s, gone in zip(shards, missing, strict=True) if not gone))
        wanted = [(int(number), shards[number]) for number in np.flatnonzero(missing)]
        with ThreadPoolExecutor(1) as writing:
            written: list[Future[None]] = []
            for number, shard, rows in _judged(source, judge, asked, wanted, mesh, workers, threads, tick):
                if number % jax.process_count() == jax.process_index():
                    path = provenance_path(out, asked.split, number, asked.shards)
                    kept = BootstrappedReader(reader, shard.start, rows, asked.threshold, fields)
                    written.append(writing.submit(_write, source.name, kept, shard, path))
                for future in [f for f in written if f.done()]:
                    future.result()  # a full disk ends the work now
            for future in written:
                future.result()
        _together("vlmax bootstrap written")
        return on_first(lambda: _finish(out, asked, shards, max_damaged))


def check_fields(reader: Reader, fields: Sequence[str]) -> None:
    """Raises `InputError` where the first sound record does not have a field that is to go along."""
    if not fields:
        return
    example = _sound(reader)
    for name in fields:
        if name not in example.fields:
            known = ", ".join(sorted(example.fields)) or "(none)"
            raise InputError(f"--fields {name}: the source's records have no such field; they have {known}")
        if name in OWN or name == FIELD or "/" in name:
            raise InputError(f"--fields {name}: a field of the new set cannot be called so; leave it out")


def _sound(reader: Reader) -> Example:
    """The first record that can be read; raises `InputError` where it is not among the first few."""
    for index in range(min(len(reader), SAMPLE)):
        with contextlib.suppress(BadRecord):
            return reader[index]
    tried = min(len(reader), SAMPLE)
    raise InputError(f"--source: its first {tried} records are damaged; python -m vlmax.prepare --check says how")


def on_first(function: Callable[[], Any]) -> Any:
    """What process 0 gives, to itself (the others get None); where it fails with an `InputError`, all end."""
    error: InputError | None = None
    found = None
    if jax.process_index() == 0:
        try:
            found = function()
        except InputError as raised:
            error = raised
    if jax.process_count() > 1 and not int(multihost_utils.broadcast_one_to_all(np.int32(error is None))):
        raise error or RunFailed("process 0 has found something wrong; its message says what")
    if error is not None:
        raise error
    return found


def _judged(
    source: Source,
    judge: Judge,
    asked: Asked,
    wanted: Sequence[tuple[int, Shard]],
    mesh: Mesh,
    workers: int,
    threads: int,
    tick: Callable[[int], None],
) -> Iterator[tuple[int, Shard, list[Row]]]:
    """The verdicts on every shard that is wanted, in order."""
    if not wanted:
        return
    parts = Parts(source, tuple((shard.start, shard.stop) for _, shard in wanted))
    before = asked.records - sum(stop - start for start, stop in parts.spans)
    sharding = NamedSharding(mesh, batch_spec(mesh))
    options = {"workers": workers, "threads": threads}
    with EvaluationPipeline(parts, judge.preprocess, asked.batch_size, sharding, **options) as pipeline:
        for number, shard in wanted:
            rows: list[Row] = []
            while len(rows) < shard.stop - shard.start:
                seed = hashed(asked.seed, shard.start + len(rows)) % 2**31
                verdicts = judge(next(pipeline).arrays, seed)
                rows += _rows(verdicts)[: shard.stop - shard.start - len(rows)]
                before += asked.batch_size
                tick(min(before, asked.records))
            yield number, shard, rows


def _rows(verdicts: Verdicts) -> list[Row]:
    valid, web, synthetic = (np.asarray(x).tolist() for x in (verdicts.valid, verdicts.web, verdicts.synthetic))
    return [Row(*row) for row in zip(valid, web, verdicts.written, synthetic, strict=True)]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Some spans of a source's records, one after the other."""

    source: Source
    spans: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """The source's own name."""
        return self.source.name

    def open(self) -> PartsReader:
        """Opens the source."""
        ends = np.cumsum([stop - start for start, stop in self.spans], dtype=np.int64)
        return PartsReader(self.source.open(), self.spans, ends)


@dataclasses.dataclass(frozen=True)
class PartsReader:
    """Random access to the records of the spans."""

    reader: Reader
    spans: tuple[tuple[int, int], ...]
    ends: np.ndarray

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Example:
        """The record at `index` of all spans."""
        span = int(np.searchsorted(self.ends, index, side="right"))
        return self.reader[self.spans[span][1] - (int(self.ends[span]) - index)]


def _kinds(fields: Sequence[str]) -> dict[str, Kind]:
    """The features of the new set: fields may hold anything, and another thing in each record."""
    named = {name: Kind("json") for name in sorted({*fields, FIELD})}
    return {"image": Kind("image"), "key": Kind("text"), "texts": Kind("text", many=True), **named}


def _write(source: str, kept: BootstrappedReader, shard: Shard, path: Path) -> None:
    kept.lines.clear()
    write_shard(source, kept, shard, lambda: None)
    write_provenance(path, kept.lines)


def _done(out: Path, asked: Asked, number: int, shard: Shard) -> bool:
    return read_state(shard) is not None and provenance_path(out, asked.split, number, asked.shards).exists()


def _finish(out: Path, asked: Asked, shards: Sequence[Shard], max_damaged: float) -> Prepared:
    """Makes the split known."""
    states = [read_state(shard) for shard in shards]
    whole = [state for state in states if state is not None]
    if len(whole) < len(states):
        raise InputError(f"{out}: {len(states) - len(whole)} shards are gone since they were written; run it again")
    damaged = [d for state in whole for d in state["damaged"]]
    if len(damaged) > max_damaged * asked.records:
        told = f"{damaged[0]['key']!r} because {damaged[0]['reason']}"
        raise InputError(
            f"{len(damaged)} of {asked.records} records are damaged, {told}; that is more than --max-damaged "
            f"{max_damaged:g} lets pass: mend the source (python -m vlmax.prepare --check), or raise it"
        )
    return splits.finish(out, asked, whole)


def _check_shared(out: Path, asked: Asked) -> None:
    """Raises `InputError`, on every process, where one does not see what process 0 wrote."""
    seen = np.asarray((out / ".prepare" / asked.split / "plan.json").exists())
    all_seen = np.asarray(multihost_utils.process_allgather(seen)) if jax.process_count() > 1 else seen[None]
    if not all_seen.all():
        blind = ", ".join(map(str, np.flatnonzero(~all_seen.reshape(-1))))
        raise InputError(
            f"--out {out}: process {blind} does not see what process 0 wrote; name a folder that all share"
        )


def _agreed(missing: Sequence[bool]) -> np.ndarray:
    """What process 0 sees, on every process."""
    found = np.asarray(missing, bool)
    return np.asarray(multihost_utils.broadcast_one_to_all(found)) if jax.process_count() > 1 else found


def _together(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
