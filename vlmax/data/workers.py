"""Reads batches ahead of the loop, in worker processes or in one thread, with a bounded number waiting."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Mapping
from multiprocessing import resource_tracker

import grain
import jax
import numpy as np
from absl import flags

from vlmax.data.batches import Batches, HostBatch
from vlmax.data.example import Feature
from vlmax.errors import InputError

SHARED_BYTES = 64 * 1024  # smaller arrays travel through the queue
CLOSE_SECONDS = 5.0  # less than the grace that a preempted process is given
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def prefetched(batches: Batches, workers: int, prefetch: int) -> Prefetched:
    """The batches in order, read ahead by `workers` processes (0: by a thread) of which each holds up to `prefetch`."""
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = grain.MapDataset.source(batches).map(_as_tuple).to_iter_dataset(read)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags; vlmax has none
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        shared = grain.experimental.DatasetOptions(min_shm_size=SHARED_BYTES)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, shared)
        dataset = dataset.mp_prefetch(options, worker_init_fn=start_worker)
    return Prefetched(dataset, 1 if workers else prefetch)


def _as_tuple(batch: HostBatch):
    """A tuple, whose arrays grain puts into shared memory."""
    return batch.arrays, batch.info


class Prefetched:
    """An iterator over host batches that begins at once, in a thread of its own, and can be closed.

    Grain's threads and processes are all started from that thread. It has the signals blocked and they inherit
    that, so that no worker dies of a Ctrl-C while it is starting; the main thread handles signals as ever.
    """

    def __init__(self, dataset: grain.IterDataset, waiting: int):
        self._ready: queue.Queue[HostBatch | BaseException] = queue.Queue(waiting)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._pull, args=(dataset,), daemon=True, name="input")
        resource_tracker.ensure_running()  # before the signals are blocked: starting it unblocks them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __iter__(self):
        return self

    def __next__(self) -> HostBatch:
        if self._closing.is_set():
            raise StopIteration
        found = self._ready.get()
        if isinstance(found, HostBatch):
            return found
        self._closing.set()
        if isinstance(found, RuntimeError) and "terminated unexpectedly" in str(found):
            raise RuntimeError(
                f"a worker process of the input pipeline died ({found}); exit code -9 is most often the kernel's "
                "answer to too little memory: lower data.workers or data.prefetch"
            ) from found
        raise found

    def _pull(self, dataset: grain.IterDataset) -> None:
        """Moves batches from grain to the queue until the end, an error or `close`."""
        iterator = iter(dataset)
        try:
            while not self._closing.is_set():
                self._put(HostBatch(*next(iterator)))
        except BaseException as error:  # also StopIteration: all of it is for the thread that asks
            self._put(error)
        finally:
            iterator.close()

    def _put(self, found: HostBatch | BaseException) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                return self._ready.put(found, timeout=0.1)

    def close(self) -> None:
        """Ends the workers; waits for the batch that is being read, but not longer than CLOSE_SECONDS."""
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        while not self._ready.empty():
            self._ready.get()


def start_worker(worker: int, workers: int) -> None:
    """What a worker does first: it leaves signals to the main process, dies with it, and keeps off accelerators."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    jax.config.update("jax_platforms", "cpu")  # grain has imported JAX already, so its variable comes too late
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel) -> None:
    """Ends this process when the parent's end of the pipe closes, however the parent died."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def check_shared_memory(features: Mapping[str, Feature], rows: int, workers: int, prefetch: int) -> None:
    """Raises `InputError` where /dev/shm cannot hold what workers keep ready (containers often give it 64 MiB)."""
    if not workers or not os.path.isdir("/dev/shm"):
        return
    batch = rows * sum(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in features.values())
    needed = batch * (workers * (2 * prefetch + 1) + 2)  # grain keeps `prefetch` on both ends of each worker's queue
    found = os.statvfs("/dev/shm")
    if (free := found.f_bavail * found.f_frsize) < needed:
        raise InputError(
            f"starting {workers} input workers: their batches take {needed / 2**20:.0f} MiB of shared memory and "
            f"/dev/shm has {free / 2**20:.0f} MiB free; start the container with --shm-size {needed // 2**20 + 1}m or "
            "more, or lower data.workers, data.prefetch or data.batch_size"
        )
