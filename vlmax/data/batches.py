"""Host batches: the rows of a global batch that this process feeds, read, decoded and stacked.

This file is what runs in worker processes; it knows nothing of devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vlmax.data.digest import key_hash
from vlmax.data.example import BadRecord, Example, Features, Packs, Preprocess, Reader
from vlmax.data.order import FixedOrder, Order
from vlmax.errors import InputError

COUNT = "count/"
"""A preprocess reports side information as features of this prefix, e.g. `count/truncated`: whole numbers that are
summed over the batch into `BatchInfo.counts` and do not travel to the devices."""

KEY_HASH = "key_hash"
ENDLESS = 2**62
Make = Callable[[Example, np.random.Generator], Features]
ATTEMPTS = 32  # damaged records in a row at one position before the source is called broken


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A record that was skipped: one line of quarantine.jsonl."""

    source: str
    key: str
    reason: str


@dataclasses.dataclass(frozen=True)
class BatchInfo:
    """What a batch does not send to the devices; it speaks of this process's rows only.

    Attributes:
      step: the step the batch is for.
      rows: the rows of the global batch, ascending.
      keys: (source, key) of each example, row by row (several a row where the preprocess packs them); None for the
        padding of an evaluation's last batch and its damaged records.
      damaged: the records that were tried and skipped.
      counts: sums of what the preprocess reported under `count/`, without that prefix.
      per_source: how many examples each source gave.
    """

    step: int
    rows: tuple[int, ...]
    keys: tuple[tuple[str, str] | None, ...]
    damaged: tuple[Damaged, ...]
    counts: Mapping[str, int]
    per_source: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """Arrays `[local rows, ...]` by feature name, and what is known beside them."""

    arrays: Features
    info: BatchInfo


@dataclasses.dataclass
class _Row:
    """One row of a batch, and (source, key) of the examples in it."""

    features: Features
    keys: tuple[tuple[str, str], ...]
    damaged: list[Damaged]


class Batches:
    """Random access to host batches by `index`, which counts from `start_step`; picklable.

    Args:
      names: of the sources.
      readers: the opened sources.
      preprocess: example -> features.
      order: which example stands at which position.
      batch_size: rows of the global batch.
      rows: those that this process feeds, ascending.
      start_step: the step of index 0.
      threads: how many threads fill a batch; more of them hide the latency of an object store.
    """

    def __init__(
        self,
        names: Sequence[str],
        readers: Sequence[Reader],
        preprocess: Preprocess,
        order: Order | FixedOrder,
        batch_size: int,
        rows: Sequence[int],
        start_step: int = 0,
        threads: int = 1,
    ):
        self.names, self.readers, self.preprocess, self.order = tuple(names), tuple(readers), preprocess, order
        self.batch_size, self.rows, self.start_step, self.threads = batch_size, tuple(rows), start_step, threads
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self):
        return {**self.__dict__, "_pool": None}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> HostBatch:
        """The batch of step `start_step + index`."""
        step = self.start_step + index
        examples = list(self._map(self._row, [step * self.batch_size + row for row in self.rows]))
        return stack(step, self.rows, examples)

    def _map(self, function, positions):
        if self.threads == 1:
            return map(function, positions)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads)
        return self._pool.map(function, positions)

    def _row(self, row: int) -> _Row:
        """The example at a place of the run; where the preprocess packs, the next ones of the order together."""
        preprocess = self.preprocess
        if not isinstance(preprocess, Packs):
            return self._example(row, preprocess)
        many = preprocess.documents
        found = [self._example(row * many + i, preprocess.document) for i in range(many)]
        keys, damaged = tuple(key for f in found for key in f.keys), [d for f in found for d in f.damaged]
        return _Row(preprocess.pack([f.features for f in found]), keys, damaged)

    def _example(self, position: int, make: Make) -> _Row:
        """The example at a position, or the first of its substitutes that is sound."""
        source, index = self.order[position]
        assert isinstance(self.order, Order)
        damaged: list[Damaged] = []
        for attempt in range(ATTEMPTS):
            if attempt:
                index = self.order.substitute(position, attempt)
            rng = self.order.rng(position, attempt)
            row = read(self.names[source], self.readers[source], make, index, rng)
            if isinstance(row, _Row):
                return dataclasses.replace(row, damaged=damaged)
            damaged.append(row)
        raise InputError(
            f"reading the source {self.names[source]!r}: {ATTEMPTS} records in a row are damaged, the last "
            f"{damaged[-1].key!r} because {damaged[-1].reason}; check the source (python -m vlmax.prepare --check) or "
            "what data.preprocess expects of it"
        )


class EvaluationBatches(Batches):
    """The batches of an evaluation: every example once, in order; a damaged one leaves an invalid row."""

    def __init__(
        self, name: str, reader: Reader, preprocess: Preprocess, batch_size: int, rows: Sequence[int], threads: int = 1
    ):
        self.blank = {name: np.zeros(feature.shape, feature.dtype) for name, feature in preprocess.features().items()}
        super().__init__([name], [reader], preprocess, FixedOrder(len(reader)), batch_size, rows, 0, threads)

    def __len__(self) -> int:
        return -(-len(self.readers[0]) // self.batch_size)

    def _row(self, position: int) -> _Row:
        side = {"valid": np.zeros((), bool), "index": np.asarray(position, np.int32)}
        padding = _Row({**self.blank, **side}, (), [])
        if position >= len(self.readers[0]):
            return padding
        row = read(self.names[0], self.readers[0], self.preprocess, position, self.order.rng(position, 0))
        if isinstance(row, Damaged):
            return dataclasses.replace(padding, damaged=[row])
        return dataclasses.replace(row, features={**row.features, **side, "valid": np.ones((), bool)})


def read(name: str, reader: Reader, make: Make, index: int, rng: np.random.Generator) -> _Row | Damaged:
    """Reads one example and makes its features; other errors than damage pass with the record's name added."""
    key = f"#{index}"
    try:
        example = reader[index]
        key = example.key
        return _Row(make(example, rng), ((name, key),), [])
    except BadRecord as error:
        return Damaged(name, getattr(error, "key", None) or key, str(error))
    except Exception as error:
        error.add_note(f"while reading record {key!r} (index {index}) of the source {name!r}")
        raise


def stack(step: int, rows: tuple[int, ...], examples: Sequence[_Row]) -> HostBatch:
    """Stacks rows into arrays and gathers what they report."""
    counts: dict[str, int] = {}
    for example in examples:
        for name in [n for n in example.features if n.startswith(COUNT)]:
            counts[name[len(COUNT) :]] = counts.get(name[len(COUNT) :], 0) + int(example.features[name])
    names = [n for n in examples[0].features if not n.startswith(COUNT)]
    arrays = {name: np.stack([e.features[name] for e in examples]) for name in names}
    arrays[KEY_HASH] = np.stack([_hash(e.keys) for e in examples])
    per_source: dict[str, int] = {}
    for source, _ in (key for e in examples for key in e.keys):
        per_source[source] = per_source.get(source, 0) + 1
    keys = tuple(key for e in examples for key in e.keys or (None,))
    damaged = tuple(d for e in examples for d in e.damaged)
    return HostBatch(arrays, BatchInfo(step, rows, keys, damaged, counts, per_source))


def _hash(keys: Sequence[tuple[str, str]]) -> np.ndarray:
    """`key_hash` of a row: of its one example, of several in their order, or of none."""
    sources, names = zip(*keys, strict=True) if keys else ((), ())
    return key_hash("\0".join(sources), "\0".join(names))
