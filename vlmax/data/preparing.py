"""Any source as a TFDS data set of ArrayRecord files: in parallel, shard by shard, able to go on where it was stopped.

`out/.prepare/<split>/` keeps what was asked (plan.json) and, for each finished shard, what is in it. A shard is written
under another name and renamed, and its bytes depend only on the source and the plan, so stopping the work at any moment
and starting it again gives the same files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmax.data import tf_examples
from vlmax.data.example import BadRecord, Reader
from vlmax.data.parallel import Tick, Work, run
from vlmax.data.shard_writer import Shard, read_state, write_shard, write_whole
from vlmax.data.sources.files import is_remote
from vlmax.data.sources.open import open_source
from vlmax.errors import InputError

SHARD_BYTES = 256 << 20
SHARD_RECORDS = 20_000
SAMPLE = 64  # records looked at before the number of shards and the features are chosen
VERSION = "1.0.0"
NAME = re.compile(r"[a-zA-Z]\w*")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a split is made of; the same plan gives the same bytes.

    Attributes:
      source: the source, in words, with all its fields.
      records: how many records of it are read.
      name: what the data set is called.
      split: what the split is called.
      shards: how many files.
      decode: whether every image is decoded, and a record whose image cannot be is left out.
    """

    source: str
    records: int
    name: str
    split: str
    shards: int
    decode: bool


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What was made.

    Attributes:
      out: the data set's folder.
      plan: what was asked.
      written: how many records are in the split.
      damaged: how many were left out; quarantine.jsonl has them.
      bytes: the size of the split.
    """

    out: Path
    plan: Plan
    written: int
    damaged: int
    bytes: int


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
    if is_remote(str(out)):
        raise InputError(f"--out {out}: prepare into a folder on disk, and copy it from there")
    reader = work.open()[1]
    records = len(reader) if max_records is None else min(max_records, len(reader))
    name = re.sub(r"\W", "_", out.resolve().name) if name is None else name
    for what, word in (("name", name), ("split", split)):
        if not NAME.fullmatch(word):
            raise InputError(f"--{what} {word!r}: letters, digits and _ only, a letter first")
    if records < 1 or workers < 1 or (shards is not None and shards < 1):
        raise InputError(f"--max-records {max_records}, --workers {workers}, --shards {shards}: each at least 1")
    size, kinds = _sample(reader, records)
    source = repr(open_source(work.spec, **work.options))
    plan = Plan(source, records, name, split, shards or _shards(size, records), decode)
    folder = out / ".prepare" / split
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(out):
        kinds = _same_as_other_splits(out, plan, kinds)
        kinds = _start_or_go_on(folder, plan, kinds)
        states = _write_all(work, out, plan, kinds, workers, max_damaged, tick, start)
        return _finish(out, plan, states)


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
    folder = out / ".prepare" / plan.split
    wanted = kinds

    def tasks(missing: list[Shard]) -> Iterator[Shard]:
        for shard in missing:
            yield dataclasses.replace(shard, kinds=wanted)

    done = [s for s in map(read_state, _all_shards(out, plan, wanted)) if s]
    start(plan, sum(s["read"] for s in done))
    while missing := [s for s in _all_shards(out, plan, wanted) if not read_state(s)]:
        damaged = [d for s in done for d in s["damaged"]]
        for _, result in run(work, write_shard, tasks(missing), min(workers, len(missing)), tick):
            if "widened" in result:
                wanted = _widen(out, folder, plan, wanted, result["widened"])
            else:
                damaged += result["damaged"]
                _judge(damaged, plan, max_damaged)
        done = [s for s in map(read_state, _all_shards(out, plan, wanted)) if s]
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


def _all_shards(out: Path, plan: Plan, kinds: dict[str, tf_examples.Kind]) -> list[Shard]:
    """Every shard of the split: records alike, in order."""
    files = [f"{plan.name}-{plan.split}.array_record-{i:05d}-of-{plan.shards:05d}" for i in range(plan.shards)]
    ends = [i * plan.records // plan.shards for i in range(plan.shards + 1)]
    folder = out / ".prepare" / plan.split
    return [
        Shard(out / file, folder / f"shard-{i:05d}.json", ends[i], ends[i + 1], plan.decode, kinds)
        for i, file in enumerate(files)
    ]


def _start_or_go_on(folder: Path, plan: Plan, kinds: dict[str, tf_examples.Kind]) -> dict[str, tf_examples.Kind]:
    """Writes the plan down, or checks it against the one there; gives the features so far."""
    path = folder / "plan.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for field, value in dataclasses.asdict(plan).items():
            if before["plan"][field] != value:
                raise InputError(
                    f"{folder.parents[1]} has the split {plan.split!r} of another preparation: {field} was "
                    f"{before['plan'][field]!r} and is {value!r}; go on as it was begun, or choose another --out or "
                    "--split"
                )
        kinds = tf_examples.widen(kinds, _kinds_from_json(before["kinds"]))
    _save_plan(folder, plan, kinds)
    return kinds


def _save_plan(folder: Path, plan: Plan, kinds: Mapping[str, tf_examples.Kind]) -> None:
    described = {n: dataclasses.asdict(k) for n, k in kinds.items()}
    write_whole(folder / "plan.json", json.dumps({"plan": dataclasses.asdict(plan), "kinds": described}, indent=2))


def _kinds_from_json(described: Mapping[str, Any]) -> dict[str, tf_examples.Kind]:
    return {n: tf_examples.Kind(**k | {"classes": tuple(k["classes"])}) for n, k in described.items()}


def _same_as_other_splits(out: Path, plan: Plan, kinds: dict[str, tf_examples.Kind]) -> dict[str, tf_examples.Kind]:
    """The features of the splits that are there; raises `InputError` where this split does not fit them."""
    try:
        info = json.loads((out / "dataset_info.json").read_text(encoding="utf-8"))
        there = tf_examples.kinds_in((out / "features.json").read_bytes())
    except FileNotFoundError:
        return kinds
    others = [s["name"] for s in info["splits"] if s["name"] != plan.split]
    if info["name"] != plan.name:
        raise InputError(f"{out} is the data set {info['name']!r}, not {plan.name!r}: choose another --out or --name")
    if not others:
        return kinds
    if different := _different(there, tf_examples.widen(there, kinds)):
        raise InputError(
            f"the splits {others} in {out} have other fields or other types of them ({', '.join(different)}), and all "
            "splits of a TFDS data set have the same; choose another --out, or give both the same --fields"
        )
    return there


def _different(first: tf_examples.Kinds, second: tf_examples.Kinds) -> list[str]:
    return [n for n in sorted({*first, *second}) if first.get(n) != second.get(n)]


def _widen(
    out: Path, folder: Path, plan: Plan, kinds: dict[str, tf_examples.Kind], more: dict[str, tf_examples.Kind]
) -> dict[str, tf_examples.Kind]:
    """Features that also hold `more`, written down so that a later run begins with them."""
    kinds = _same_as_other_splits(out, plan, tf_examples.widen(kinds, more))
    _save_plan(folder, plan, kinds)
    return kinds


def _judge(damaged: list[dict[str, str]], plan: Plan, limit: float) -> None:
    """Raises `InputError` where too much of the source is damaged."""
    if len(damaged) > limit * plan.records:
        key, reason = damaged[0]["key"], damaged[0]["reason"]
        raise InputError(
            f"{len(damaged)} of {plan.records} records are damaged, {key!r} because {reason}; that is more than "
            f"--max-damaged {limit:g} lets pass: mend the source (--check lists what is wrong), or raise it"
        )


def _finish(out: Path, plan: Plan, states: list[dict[str, Any]]) -> Prepared:
    """Writes features.json, quarantine.jsonl and, last, dataset_info.json, which makes the split known."""
    from tensorflow_datasets.core.proto import dataset_info_pb2

    folder = out / ".prepare"
    kinds = _kinds_from_json(json.loads((folder / plan.split / "plan.json").read_text(encoding="utf-8"))["kinds"])
    tf_examples.features(kinds).save_config(str(out))
    write_whole(out / "quarantine.jsonl", "".join(_quarantined(folder)))
    info = _info(
        out,
        dataset_info_pb2.DatasetInfo(  # type: ignore[attr-defined]
            name=plan.name, version=VERSION, file_format="array_record"
        ),
    )
    written, size = [s["records"] for s in states], sum(s["bytes"] for s in states)
    for i in reversed(range(len(info.splits))):
        if info.splits[i].name == plan.split:
            del info.splits[i]
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info.splits.add(name=plan.split, shard_lengths=written, num_bytes=size, filepath_template=template)
    write_whole(out / "dataset_info.json", _to_json(info))
    return Prepared(out, plan, sum(written), sum(len(s["damaged"]) for s in states), size)


def _info(out: Path, new: Any) -> Any:
    """The description that is there, or the new one."""
    from google.protobuf import json_format

    path = out / "dataset_info.json"
    return json_format.Parse(path.read_text(encoding="utf-8"), type(new)()) if path.exists() else new


def _to_json(info: Any) -> str:
    from google.protobuf import json_format

    return json_format.MessageToJson(info)


def _quarantined(folder: Path) -> Iterator[str]:
    """The lines of quarantine.jsonl for all splits, in their order."""
    for state in sorted(folder.glob("*/shard-*.json")):
        for damaged in json.loads(state.read_text(encoding="utf-8"))["damaged"]:
            yield json.dumps(damaged, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Keeps a second process out of the folder; the lock goes with the process, however it ends."""
    with (out / ".prepare" / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is preparing into {out}; wait for it, or choose another --out") from None
        for left in out.glob(".*.tmp"):
            left.unlink()
        yield
