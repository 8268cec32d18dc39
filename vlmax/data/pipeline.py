"""From sources to global batches on the mesh.

    sources -> order -> read, preprocess, stack (worker processes) -> one sharded array per feature

The whole position of the pipeline is the step: what stands in a batch is a function of (configuration, seed, step), and
each process reads just the rows that its devices hold.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vlmax.data.batches import Batches, BatchInfo, EvaluationBatches, HostBatch
from vlmax.data.example import Packs, Preprocess, Source
from vlmax.data.order import Order
from vlmax.data.workers import check_shared_memory, prefetched
from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A source and its share of a mixture."""

    source: Source
    weight: float = 1.0
    """Share of the examples, relative to the other weights; how long a source is does not matter."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Where examples come from and how they become batches."""

    sources: tuple[Weighted, ...]
    """Mixed by weight; each is shuffled as a whole, anew every epoch, and repeats without end."""
    preprocess: Preprocess
    """Example -> features."""
    batch_size: int = 256
    """Rows of the global batch: an example each, or several where the preprocess packs them."""
    workers: int = 0
    """Processes of each host that read and decode; 0: one thread of the main process."""
    threads: int = 1
    """Threads in each of them; more hide the latency of an object store."""
    prefetch: int = 2
    """Batches that each worker keeps ready."""
    quarantine_limit: float = 0.05
    """The run stops when more than this share of the records read is damaged."""
    quarantine_minimum: int = 1000
    """Records to read before that share is judged."""

    def __post_init__(self):
        least = {"batch_size": 1, "workers": 0, "threads": 1, "prefetch": 1, "quarantine_minimum": 1}
        for field, value in least.items():
            if getattr(self, field) < value:
                raise InputError(f"data.{field} is {getattr(self, field)}; it must be at least {value}")
        if not 0 <= self.quarantine_limit <= 1:
            raise InputError(f"data.quarantine_limit is {self.quarantine_limit}; it is a share and must lie in 0 to 1")
        if not self.sources:
            raise InputError("data.sources is empty; name at least one source, as Weighted(source)")
        names = [w.source.name for w in self.sources]
        if len(set(names)) < len(names):
            raise InputError(f"data.sources: two sources share a name in {names}; give each its own")


class Batch(NamedTuple):
    """One global batch: sharded arrays `[B, ...]` by feature name, and what this process knows beside them."""

    arrays: dict[str, jax.Array]
    info: BatchInfo


class Pipeline(Iterator[Batch]):
    """The training batches from `start_step` on, without end. Use as a context manager, or call `close`.

    Args:
      data: the configuration.
      sharding: how dimension 0 of every array lies on the mesh, e.g. `NamedSharding(mesh, P(("data", "fsdp")))`.
      seed: another seed is another order and other random transforms.
      start_step: where to begin; any step takes the same time to reach.

    Raises:
      InputError: a source that cannot be opened, a batch that the devices do not divide, too little shared memory.
    """

    def __init__(self, data: Data, sharding: NamedSharding, seed: int = 0, start_step: int = 0):
        self.data, self.sharding, self.step = data, sharding, start_step
        self.rows = local_rows(sharding, data.batch_size)
        check_shared_memory(data.preprocess.features(), len(self.rows), data.workers, data.prefetch)
        batches = host_batches(data, self.rows, seed, start_step)
        self.lengths = dict(zip(batches.names, (len(r) for r in batches.readers), strict=True))
        self._state = {"seed": seed, "batch_size": data.batch_size, "order": order_of(data, batches.readers)}
        if isinstance(data.preprocess, Packs):
            self._state["documents"] = data.preprocess.documents
        self._batches = prefetched(batches, data.workers, data.prefetch)

    def __next__(self) -> Batch:
        """The batch of `self.step`."""
        host = next(self._batches)
        assert host.info.step == self.step
        self.step += 1
        return Batch(global_arrays(host, self.rows, self.data.batch_size, self.sharding), host.info)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the next step, and what the order of examples depends on."""
        return {"step": self.step, **self._state}

    def close(self) -> None:
        """Ends the workers."""
        self._batches.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def order_of(data: Data, readers) -> str:
    """Names, lengths and weights of the sources: what the order depends on beside seed and batch size."""
    rows = [[w.source.name, len(r), w.weight] for w, r in zip(data.sources, readers, strict=True)]
    return json.dumps(rows)


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What changed between two `Pipeline.state()`s that changes the order of examples, one line each."""
    names = {
        "seed": "seed",
        "batch_size": "data.batch_size",
        "order": "data.sources (name, records, weight)",
        "documents": "data.preprocess.documents",
    }
    return [
        f"{told}: {saved.get(name)} when saved, {current.get(name)} now"
        for name, told in names.items()
        if saved.get(name) != current.get(name)
    ]


def host_batches(data: Data, rows: Iterable[int], seed: int, start_step: int = 0) -> Batches:
    """Random access to the host batches of some rows: the pipeline without prefetching and devices."""
    readers = [w.source.open() for w in data.sources]
    order = Order([len(r) for r in readers], [w.weight for w in data.sources], seed)
    names = [w.source.name for w in data.sources]
    return Batches(names, readers, data.preprocess, order, data.batch_size, tuple(rows), start_step, data.threads)


def local_rows(sharding: NamedSharding, batch_size: int, devices: Iterable[Any] | None = None) -> tuple[int, ...]:
    """The rows of a global batch that the given devices hold (default: those of this process), ascending.

    Raises:
      InputError: a batch size that the sharding does not divide.
    """
    check_divides(sharding, batch_size)
    wanted = set(sharding.addressable_devices if devices is None else devices)
    held: set[int] = set()
    for device, (index, *_) in sharding.devices_indices_map((batch_size,)).items():
        if device in wanted:
            held.update(range(batch_size)[index])
    return tuple(sorted(held))


def check_divides(sharding: NamedSharding, batch_size: int) -> None:
    """Raises `InputError` naming the nearest batch size that the mesh divides."""
    names = sharding.spec[0] if len(sharding.spec) else None
    names = (names,) if isinstance(names, str) else names or ()
    parts = int(np.prod([sharding.mesh.shape[n] for n in names], dtype=np.int64))
    if batch_size % parts:
        nearest = max(1, round(batch_size / parts)) * parts
        axes = ", ".join(f"{n}={sharding.mesh.shape[n]}" for n in names)
        raise InputError(
            f"placing the batch on the mesh: data.batch_size {batch_size} does not divide over {parts} parts "
            f"(mesh axes {axes}); the nearest that does is {nearest}"
        )


def global_arrays(
    host: HostBatch, rows: tuple[int, ...], batch_size: int, sharding: NamedSharding
) -> dict[str, jax.Array]:
    """Places this process's rows on its devices as parts of global arrays `[batch_size, ...]`."""
    sharding = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0] if len(sharding.spec) else None))
    place = {row: place for place, row in enumerate(rows)}
    held = {d: index for d, index in sharding.addressable_devices_indices_map((batch_size,)).items() if index}
    devices = list(held)
    wanted = [range(batch_size)[index] for (index, *_) in held.values()]
    slices = [slice(place[w[0]], place[w[0]] + len(w)) for w in wanted]

    def spread(array: np.ndarray) -> jax.Array:
        if devices[0].platform == "cpu":
            array = np.array(array)  # the CPU backend uses the memory it is given, which is a worker's
        parts = jax.device_put([array[s] for s in slices], devices)  # explicit: allowed under a transfer guard
        return jax.make_array_from_single_device_arrays((batch_size, *array.shape[1:]), sharding, parts)

    return {name: spread(np.asarray(array)) for name, array in host.arrays.items()}


class EvaluationPipeline(Iterator[Batch]):
    """The batches of one pass over a source, in order; use as a context manager, or run it to its end.

    Beside the features each batch has `valid` bool `[B]` (false for the padding of the last batch and for damaged
    records, whose features are zero), `index` int32 `[B]` (place in the source) and `key_hash`.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        batch_size: int,
        sharding: NamedSharding,
        *,
        workers: int = 0,
        prefetch: int = 2,
        threads: int = 1,
    ):
        self.rows, self.batch_size, self.sharding = local_rows(sharding, batch_size), batch_size, sharding
        check_shared_memory(preprocess.features(), len(self.rows), workers, prefetch)
        batches = EvaluationBatches(source.name, source.open(), preprocess, batch_size, self.rows, threads)
        self.examples = len(batches.readers[0])
        self._left = len(batches)
        self._batches = prefetched(batches, min(workers, len(batches)), prefetch)

    def __len__(self) -> int:
        return self._left

    def __next__(self) -> Batch:
        """The next batch; after the last one the workers are gone."""
        if not self._left:
            self.close()
            raise StopIteration
        host = next(self._batches)
        self._left -= 1
        return Batch(global_arrays(host, self.rows, self.batch_size, self.sharding), host.info)

    def close(self) -> None:
        """Ends the workers."""
        self._batches.close()

    def __enter__(self) -> EvaluationPipeline:
        return self

    def __exit__(self, *_) -> None:
        self.close()
