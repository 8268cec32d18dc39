"""What interrupts a run: the platform's SIGTERM, the clock, and a step that never ends."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vlmax.errors import RestartRequested

SAVE, LEAVE = 1, 2  # votes: a save is due; the process was told to leave (which saves too)


class Interrupts:
    """Notes SIGTERM and SIGINT, and lets all processes agree on what to do about them.

    A process cannot save alone: the save is collective. So each puts its vote into the batch, the train step takes the
    maximum over all devices, and every process reads the same answer back with that step's metrics.
    """

    def __init__(self) -> None:
        self.told_to_leave: str | None = None
        self._raise = False
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}

    def _handle(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.told_to_leave is not None:
            raise KeyboardInterrupt  # asked twice: the person does not want to wait
        self.told_to_leave = signal.Signals(number).name
        if self._raise:
            raise RestartRequested(f"{self.told_to_leave} received")

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Inside, a signal raises `RestartRequested` at once: for work that may be thrown away, by a lone process."""
        if jax.process_count() > 1:
            yield
            return
        if self.told_to_leave is not None:
            raise RestartRequested(f"{self.told_to_leave} received")
        self._raise = True
        try:
            yield
        finally:
            self._raise = False

    def close(self) -> None:
        """Puts the signal handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Ballot:
    """This process's vote, as a global array `[devices]` for the batch."""

    def __init__(self, mesh: jax.sharding.Mesh, minutes: float | None):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._devices = mesh.size
        self._seconds = None if minutes is None else minutes * 60
        self.saved()

    def saved(self) -> None:
        """Starts the clock of time-based saves anew."""
        self._since = time.monotonic()

    def array(self, leave: bool) -> jax.Array:
        """int32 `[devices]`: LEAVE, SAVE where the clock has run out, or 0."""
        due = self._seconds is not None and time.monotonic() - self._since >= self._seconds
        vote = LEAVE if leave else SAVE if due else 0
        one = np.full(1, vote, np.int32)
        return jax.make_array_from_callback((self._devices,), self._sharding, lambda index: one)


class Watchdog:
    """Dumps the stacks of all threads and ends the process when `fed` is not called in time.

    The clock runs in a C thread, so that it ends a process whose interpreter is stuck in a collective or in I/O, too.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    def feed(self, allowance: float = 0.0) -> None:
        """Starts the clock anew, with `allowance` seconds on top."""
        faulthandler.dump_traceback_later(self._seconds + allowance, exit=True, file=sys.stderr)

    def close(self) -> None:
        """Stops the clock."""
        faulthandler.cancel_dump_traceback_later()
