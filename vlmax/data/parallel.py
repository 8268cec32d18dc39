"""Work over a source in several processes, each with its own reader."""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from vlmax.data.example import Reader
from vlmax.data.sources.open import open_source

Task = TypeVar("Task")
Result = TypeVar("Result")
Tick = Callable[[int], None]  # how many records are done, in all


@dataclasses.dataclass(frozen=True)
class Work:
    """What a process needs to open the source for itself: readers of a Python file's sources do not pickle.

    Attributes:
      spec: the source as on the command line.
      options: fields of the source that the command line sets.
    """

    spec: str
    options: Mapping[str, Any]

    def open(self) -> tuple[str, Reader]:
        """The source's name and a reader."""
        source = open_source(self.spec, **self.options)
        return source.name, source.open()


class _Process:
    """What a worker process keeps between tasks."""

    name: str
    reader: Reader
    done: Any
    stop: Any


def run(
    work: Work,
    function: Callable[[str, Reader, Task, Callable[[], None]], Result],
    tasks: Iterable[Task],
    workers: int,
    tick: Tick,
) -> Iterator[tuple[Task, Result]]:
    """Yields each task with `function(name, reader, task, one_done)`, in the order in which they end.

    Tasks are taken from the iterable when a process is free, so that it may depend on earlier results. With one worker
    all is done in this process.
    """
    if workers == 1:
        name, reader = work.open()
        done = 0

        def one_done() -> None:
            nonlocal done
            done += 1
            tick(done)

        for task in tasks:
            yield task, function(name, reader, task, one_done)
        return
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start, (work, counter, stop))
    try:
        yield from _in_pool(pool, function, iter(tasks), workers, lambda: tick(counter.value))
    except BrokenProcessPool as error:
        raise RuntimeError("a worker process died, most often of too little memory: use fewer --workers") from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _in_pool(
    pool: ProcessPoolExecutor, function: Any, tasks: Iterator[Any], workers: int, tick: Callable[[], None]
) -> Iterator[tuple[Any, Any]]:
    """Keeps the pool busy with as many tasks as there are workers."""
    running: dict[Future, Any] = {}
    free = collections.deque(range(workers))
    while True:
        for _ in range(len(free)):
            if (task := next(tasks, None)) is None:
                break
            running[pool.submit(_work, function, task)] = task
            free.pop()
        if not running:
            return
        for future in wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done:
            free.append(0)
            yield running.pop(future), future.result()
        tick()


def _start(work: Work, done: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process says when to stop
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    _Process.name, _Process.reader = work.open()
    _Process.done, _Process.stop = done, stop


def _work(function: Any, task: Any) -> Any:
    return function(_Process.name, _Process.reader, task, _one_done)


def _one_done() -> None:
    if _Process.stop.is_set():
        raise KeyboardInterrupt
    with _Process.done.get_lock():
        _Process.done.value += 1


def _die_with(sentinel: int) -> None:
    """Ends this process when its parent ends, however that dies: nobody would take what it makes."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
