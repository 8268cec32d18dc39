"""Where a run's time goes: examples per second, the share spent waiting for input, model FLOPs per second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Throughput:
    """Counts steps and time between two readings. Pauses (evaluation, checkpoints) do not count.

        with throughput.waiting():
            batch = next(batches)
        state, metrics = step(state, batch)
        throughput.step()
        if step % log_every == 0:
            reporter.write(step, throughput.read())

    JAX dispatches asynchronously: the figures are true where the loop reads a step's metrics at most a few steps late,
    because then the host runs at the pace of the device.

    Args:
      batch_size: examples in one step, over all processes.
      flops_per_example: `flops.train_flops_per_example`.
      peak_flops: peak FLOP/s of all devices together; None leaves MFU out.
      clock: seconds; another in tests.
    """

    def __init__(
        self,
        batch_size: int,
        flops_per_example: float,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._batch_size, self._flops, self._peak, self._clock = batch_size, flops_per_example, peak_flops, clock
        self._restart()

    def _restart(self) -> None:
        self._began, self._steps, self._waited, self._paused = self._clock(), 0, 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside is time in which the step waits for its input."""
        before = self._clock()
        yield
        self._waited += self._clock() - before

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside does not count at all."""
        before = self._clock()
        yield
        self._paused += self._clock() - before

    def step(self) -> None:
        """One step is done."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """The figures since the last reading (or the start), and begins anew; empty where no step was done.

        Keys: `train/examples_per_second`, `train/seconds_per_step`, `train/input_wait_share` (0 to 1),
        `train/model_flops_per_second` (over all devices) and, where the peak is known, `train/mfu` (0 to 1).
        """
        seconds, steps, waited = self._clock() - self._began - self._paused, self._steps, self._waited
        self._restart()
        if steps == 0 or seconds <= 0:
            return {}
        examples_per_second = steps * self._batch_size / seconds
        figures = {
            "train/examples_per_second": examples_per_second,
            "train/seconds_per_step": seconds / steps,
            "train/input_wait_share": waited / seconds,
            "train/model_flops_per_second": examples_per_second * self._flops,
        }
        if self._peak is not None:
            figures["train/mfu"] = examples_per_second * self._flops / self._peak
        return figures
