"""What JAX compiled, how long it took, and whether a function that should compile once did so again."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Collection
from types import TracebackType

import jax

# Fires for every executable; where the compilation cache has it, the duration is that of reading it.
_COMPILE = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass(frozen=True)
class Compiles:
    """What was compiled since the last look.

    Attributes:
      count: executables made, those from the cache included.
      cache_hits: how many of them came from the compilation cache.
      seconds: time that compiling, or reading from the cache, took.
      recompiled: watched functions compiled for the second time or more since the log was opened, with repetition.
    """

    count: int
    cache_hits: int
    seconds: float
    recompiled: tuple[str, ...]


class CompileLog:
    """Listens to JAX's compiler while it is open.

        with CompileLog(watch=("train_step",)) as compiles:
            ...
            found = compiles.take()

    Args:
      watch: names of jitted functions (`def train_step` -> "train_step") that should compile only once.
    """

    def __init__(self, watch: Collection[str] = ()) -> None:
        self._watched = frozenset(watch)
        self._times = collections.Counter[str]()
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._count, self._hits, self._seconds = 0, 0, 0.0
        self._recompiled: list[str] = []

    def __enter__(self) -> CompileLog:
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        jax.monitoring.register_event_listener(self._happened)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._compiled)
        jax.monitoring.unregister_event_listener(self._happened)

    def _compiled(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event != _COMPILE:
            return
        name = str(details.get("fun_name", "")).removeprefix("jit(").removesuffix(")")
        with self._lock:
            self._count += 1
            self._seconds += duration_secs
            if name in self._watched:
                self._times[name] += 1
                if self._times[name] > 1:
                    self._recompiled.append(name)

    def _happened(self, event: str, **_: str | int) -> None:
        if event == _CACHE_HIT:
            with self._lock:
                self._hits += 1

    def take(self) -> Compiles:
        """What was compiled since the last call."""
        with self._lock:
            found = Compiles(self._count, self._hits, self._seconds, tuple(self._recompiled))
            self._clear()
        return found
