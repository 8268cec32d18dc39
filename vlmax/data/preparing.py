"""Any source as a TFDS data set of ArrayRecord files: in parallel, shard by shard, able to go on where it was stopped.

A shard is written under another name and renamed, and its bytes depend only on the source and the plan, so stopping the
work at any moment and starting it again gives the same files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmax.data import splits, tf_examples
from vlmax.data.example import BadRecord, Reader
from vlmax.data.parallel import Tick, Work, run
from vlmax.data.shard_writer import Shard, read_state, write_shard
from vlmax.data.sources.open import open_source
from vlmax.data.splits import Plan, Prepared
from vlmax.errors import InputError

SHARD_BYTES = 256 << 20
SHARD_RECORDS = 20_000
SAMPLE = 64  # records looked at before the number of shards and the features are chosen


def prepare(
    work: Work,
    out: Path,
    name: str | None = None,
    split: str = "train",
    shards: int | None = None,
    workers: int = 1,
    max_records: int | None = None,
    max_damaged: float = 0.1,
    decode: bool = True,
    tick: Tick = lambda done: None,
    start: Callable[[Plan, int], None] = lambda plan, before: None,
) -> Prepared:
    """Writes a split of a TFDS data set, or what is missing of it.

    Args:
      work: the source.
      out: the data set's folder; other splits in it stay.
      name: what the data set is called; by default as its folder.
      split: what the split is called.
      shards: how many files; by default of about 256 MiB, at most 20,000 records each.
      workers: how many processes read, check and write.
      max_records: reads only the first ones.
      max_damaged: the largest share of damaged records that is let pass.
      decode: checks every image by decoding it.
      tick: is called with the number of records done in this run.
      start: is called once with the plan and the number of records that an earlier run has done.

    Raises:
      InputError: the source cannot be opened, too much of it is damaged, or `out` holds something else.
    """
    name, split = splits.names(out, name, split)
    reader = work.open()[1]
    records = len(reader) if max_records is None else min(max_records, len(reader))
    if records < 1 or workers < 1 or (shards is not None and shards < 1):
        raise InputError(f"--max-records {max_records}, --workers {workers}, --shards {shards}: each at least 1")
    size, kinds = _sample(reader, records)
    source = repr(open_source(work.spec, **work.options))
    plan = Plan(source, records, name, split, shards or _shards(size, records), decode)
    with splits.only_one(out):
        kinds = splits.begin(out, plan, kinds)
        states = _write_all(work, out, plan, kinds, workers, max_damaged, tick, start)
        return splits.finish(out, plan, states)


def _write_all(
    work: Work,
    out: Path,
    plan: Plan,
    kinds: dict[str, tf_examples.Kind],
    workers: int,
    max_damaged: float,
    tick: Tick,
    start: Callable[[Plan, int], None],
) -> list[dict[str, Any]]:
    """Writes the shards that are not there; again where a later record widens the features. Gives all their states."""
    wanted = kinds
    ends = [i * plan.records // plan.shards for i in range(plan.shards + 1)]  # records alike

    def tasks(missing: list[Shard]) -> Iterator[Shard]:
        for shard in missing:
            yield dataclasses.replace(shard, kinds=wanted)

    done = [s for s in map(read_state, splits.shards(out, plan, wanted, ends)) if s]
    start(plan, sum(s["read"] for s in done))
    while missing := [s for s in splits.shards(out, plan, wanted, ends) if not read_state(s)]:
        damaged = [d for s in done for d in s["damaged"]]
        for _, result in run(work, write_shard, tasks(missing), min(workers, len(missing)), tick):
            if "widened" in result:
                wanted = splits.widen(out, plan, wanted, result["widened"])
            else:
                damaged += result["damaged"]
                _judge(damaged, plan, max_damaged)
        done = [s for s in map(read_state, splits.shards(out, plan, wanted, ends)) if s]
    _judge([d for s in done for d in s["damaged"]], plan, max_damaged)
    return done


def _sample(reader: Reader, records: int) -> tuple[float, dict[str, tf_examples.Kind]]:
    """The mean size of some records, in bytes, and features that hold them."""
    kinds: dict[str, tf_examples.Kind] | None = None
    sizes = []
    for i in range(min(SAMPLE, records)):
        with contextlib.suppress(BadRecord):
            example = reader[i * records // min(SAMPLE, records)]
            own = tf_examples.kinds_of_example(example)
            kinds = own if kinds is None else tf_examples.widen(kinds, own)
            sizes.append(len(tf_examples.encode(example, own)))
    if kinds is None:
        raise InputError(f"all {min(SAMPLE, records)} records tried of the source are damaged; --check says how")
    return sum(sizes) / len(sizes), kinds


def _shards(mean_bytes: float, records: int) -> int:
    return max(1, math.ceil(mean_bytes * records / SHARD_BYTES), math.ceil(records / SHARD_RECORDS))


def _judge(damaged: list[dict[str, str]], plan: Plan, limit: float) -> None:
    """Raises `InputError` where too much of the source is damaged."""
    if len(damaged) > limit * plan.records:
        key, reason = damaged[0]["key"], damaged[0]["reason"]
        raise InputError(
            f"{len(damaged)} of {plan.records} records are damaged, {key!r} because {reason}; that is more than "
            f"--max-damaged {limit:g} lets pass: mend the source (--check lists what is wrong), or raise it"
        )
