"""A split of a TFDS data set that is being written: its plan, its shards, what all splits share, and its description.

`out/.prepare/<split>/` keeps what was asked (plan.json) and, for each finished shard, what is in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmax.data import tf_examples
from vlmax.data.shard_writer import Shard, write_whole
from vlmax.data.sources.files import is_remote
from vlmax.errors import InputError

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


def names(out: Path, name: str | None, split: str) -> tuple[str, str]:
    """The names of the data set, by default its folder's, and of the split; raises `InputError` where they are none."""
    if is_remote(str(out)):
        raise InputError(f"--out {out}: write into a folder on disk, and copy it from there")
    name = re.sub(r"\W", "_", out.resolve().name) if name is None else name
    for what, word in (("name", name), ("split", split)):
        if not NAME.fullmatch(word):
            raise InputError(f"--{what} {word!r}: letters, digits and _ only, a letter first")
    return name, split


def shards(out: Path, plan: Plan, kinds: dict[str, tf_examples.Kind], ends: Sequence[int]) -> list[Shard]:
    """Every shard of the split, in order; `ends` are the first record of each, and the end of the last."""
    files = [f"{plan.name}-{plan.split}.array_record-{i:05d}-of-{plan.shards:05d}" for i in range(plan.shards)]
    folder = out / ".prepare" / plan.split
    return [
        Shard(out / file, folder / f"shard-{i:05d}.json", ends[i], ends[i + 1], plan.decode, kinds)
        for i, file in enumerate(files)
    ]


def begin(out: Path, plan: Plan, kinds: dict[str, tf_examples.Kind]) -> dict[str, tf_examples.Kind]:
    """Writes the plan down, or checks it against the one there; gives the features so far.

    Raises:
      InputError: the split was begun by another plan, or other splits have other features.
    """
    kinds = _same_as_other_splits(out, plan, kinds)
    folder = out / ".prepare" / plan.split
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for field, value in dataclasses.asdict(plan).items():
            if before["plan"].get(field) != value:
                raise InputError(
                    f"{out} has the split {plan.split!r} of another preparation: {field} was "
                    f"{before['plan'].get(field)!r} and is {value!r}; go on as it was begun, or choose another --out "
                    "or --split"
                )
        kinds = tf_examples.widen(kinds, planned_kinds(out, plan.split))
    _save_plan(folder, plan, kinds)
    return kinds


def planned_kinds(out: Path, split: str) -> dict[str, tf_examples.Kind]:
    """The features of a split that was begun."""
    plan = json.loads((out / ".prepare" / split / "plan.json").read_text(encoding="utf-8"))
    return {n: tf_examples.Kind(**k | {"classes": tuple(k["classes"])}) for n, k in plan["kinds"].items()}


def widen(
    out: Path, plan: Plan, kinds: dict[str, tf_examples.Kind], more: dict[str, tf_examples.Kind]
) -> dict[str, tf_examples.Kind]:
    """Features that also hold `more`, written down so that a later run begins with them."""
    kinds = _same_as_other_splits(out, plan, tf_examples.widen(kinds, more))
    _save_plan(out / ".prepare" / plan.split, plan, kinds)
    return kinds


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


def _save_plan(folder: Path, plan: Plan, kinds: Mapping[str, tf_examples.Kind]) -> None:
    described = {n: dataclasses.asdict(k) for n, k in kinds.items()}
    write_whole(folder / "plan.json", json.dumps({"plan": dataclasses.asdict(plan), "kinds": described}, indent=2))


def finish(out: Path, plan: Plan, states: list[dict[str, Any]]) -> Prepared:
    """Writes features.json, quarantine.jsonl and, last, dataset_info.json, which makes the split known."""
    from tensorflow_datasets.core.proto import dataset_info_pb2

    folder = out / ".prepare"
    kinds = planned_kinds(out, plan.split)
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


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Keeps a second process out of the folder; the lock goes with the process, however it ends."""
    try:
        (out / ".prepare").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: the folder cannot be made ({error}); name another") from error
    with (out / ".prepare" / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is preparing into {out}; wait for it, or choose another --out") from None
        for left in out.glob(".*.tmp"):
            left.unlink()
        yield


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
