"""Learning-rate schedules as functions of the optimizer step, never of microbatches; an epoch is a number of steps.

Step k is the k-th update counted from 0. Warm-up rises linearly from 0 at step 0 to `peak` at step `warmup_steps`, so
the first update of a run with warm-up moves nothing; the decay reaches `end` at step `total_steps`, one after the
last update.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import optax

from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Warm-up, then half a cosine from `peak` to `end`."""

    peak: float
    """The highest learning rate."""
    warmup_steps: int = 0
    """Steps from 0 to the peak."""
    end: float = 0.0
    """The learning rate at the end of the run."""

    def build(self, total_steps: int) -> optax.Schedule:
        """The learning rate at a step.

        Raises:
          InputError: the warm-up is longer than the run, or a number makes no sense.
        """
        _check(self.peak, self.warmup_steps, total_steps)
        _check_end(self.peak, self.end)
        after = optax.cosine_decay_schedule(self.peak, total_steps - self.warmup_steps, self.end / self.peak)
        return _warm_up(self.peak, self.warmup_steps, after)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Warm-up, then a straight line from `peak` to `end`."""

    peak: float
    """The highest learning rate."""
    warmup_steps: int = 0
    """Steps from 0 to the peak."""
    end: float = 0.0
    """The learning rate at the end of the run."""

    def build(self, total_steps: int) -> optax.Schedule:
        """The learning rate at a step.

        Raises:
          InputError: the warm-up is longer than the run, or a number makes no sense.
        """
        _check(self.peak, self.warmup_steps, total_steps)
        _check_end(self.peak, self.end)
        after = optax.linear_schedule(self.peak, self.end, total_steps - self.warmup_steps)
        return _warm_up(self.peak, self.warmup_steps, after)


@dataclasses.dataclass(frozen=True)
class Constant:
    """Warm-up, then `peak` for good."""

    peak: float
    """The highest learning rate."""
    warmup_steps: int = 0
    """Steps from 0 to the peak."""

    def build(self, total_steps: int) -> optax.Schedule:
        """The learning rate at a step.

        Raises:
          InputError: the warm-up is longer than the run, or a number makes no sense.
        """
        _check(self.peak, self.warmup_steps, total_steps)
        return _warm_up(self.peak, self.warmup_steps, optax.constant_schedule(self.peak))


@dataclasses.dataclass(frozen=True)
class Rsqrt:
    """Warm-up, then peak / sqrt(1 + t / timescale) at t steps after it, and a linear cool-down to 0.

    Zhai et al. 2022 (Scaling Vision Transformers, section 3.5): such a run can be prolonged from before its cool-down.
    """

    peak: float
    """The highest learning rate."""
    warmup_steps: int = 0
    """Steps from 0 to the peak."""
    timescale: int = 10_000
    """After 3 times so many steps the rate is half the peak."""
    cooldown_steps: int = 0
    """Over the last so many steps the rate is also multiplied by a line from 1 to 0."""

    def build(self, total_steps: int) -> optax.Schedule:
        """The learning rate at a step.

        Raises:
          InputError: warm-up and cool-down are longer than the run, or a number makes no sense.
        """
        _check(self.peak, self.warmup_steps, total_steps)
        if self.timescale < 1:
            raise InputError(f"optimizer.schedule.timescale is {self.timescale}; it must be at least 1")
        if not 0 <= self.cooldown_steps <= total_steps - self.warmup_steps:
            raise InputError(
                f"optimizer.schedule.cooldown_steps is {self.cooldown_steps}; it must lie between 0 and "
                f"{total_steps - self.warmup_steps}, the steps that the warm-up leaves of {total_steps}"
            )

        def after(t):
            left = total_steps - self.warmup_steps - t
            cooldown = jnp.clip(left / self.cooldown_steps, 0.0, 1.0) if self.cooldown_steps else 1.0
            return self.peak * cooldown / jnp.sqrt(1.0 + t / self.timescale)

        return _warm_up(self.peak, self.warmup_steps, after)


@dataclasses.dataclass(frozen=True)
class EpochDecay:
    """Within the first epoch a line from `start` to `peak`; then max(end, peak decay^epoch), the same all epoch long.

    BLIP's pretraining (Li et al. 2022: decay 0.85; the public code: 0.9). A warm-up longer than an epoch ends with it.
    """

    peak: float
    """The highest learning rate."""
    epoch_steps: int
    """Steps of an epoch."""
    decay: float = 0.9
    """From one epoch to the next."""
    warmup_steps: int = 0
    """Steps from `start` to the peak."""
    start: float = 1e-6
    """The learning rate at step 0 of a warm-up."""
    end: float = 1e-6
    """No learning rate is below it."""

    def build(self, total_steps: int) -> optax.Schedule:
        """The learning rate at a step.

        Raises:
          InputError: the warm-up is longer than the run, or a number makes no sense.
        """
        _check(self.peak, self.warmup_steps, total_steps)
        _check_end(self.peak, self.end)
        _check_epoch(self.epoch_steps)
        if not 0 < self.decay <= 1 or not 0 <= self.start <= self.peak:
            raise InputError(
                f"optimizer.schedule: decay is {self.decay} and start {self.start}; they must be above 0 and at most "
                f"1, and between 0 and the peak, {self.peak}"
            )

        def rate(step):
            epoch = step // self.epoch_steps
            after = jnp.maximum(self.end, self.peak * self.decay**epoch)
            warm = self.start + (self.peak - self.start) * step / max(self.warmup_steps, 1)
            return jnp.where((epoch == 0) & (step < self.warmup_steps), warm, after)

        return rate


@dataclasses.dataclass(frozen=True)
class EpochCosine:
    """Half a cosine from `peak` to `end`, the same all epoch long: BLIP's fine-tunings."""

    peak: float
    """The highest learning rate, that of the first epoch."""
    epoch_steps: int
    """Steps of an epoch."""
    end: float = 0.0
    """The learning rate that an epoch after the last would have."""

    def build(self, total_steps: int) -> optax.Schedule:
        """The learning rate at a step; raises `InputError` where a number makes no sense."""
        _check(self.peak, 0, total_steps)
        _check_end(self.peak, self.end)
        _check_epoch(self.epoch_steps)
        smooth = optax.cosine_decay_schedule(self.peak, total_steps, self.end / self.peak)
        return lambda step: smooth(step // self.epoch_steps * self.epoch_steps)


Schedule = Cosine | Linear | Constant | Rsqrt | EpochDecay | EpochCosine


def _warm_up(peak: float, warmup_steps: int, after: optax.Schedule) -> optax.Schedule:
    """A line from 0 to the peak, then `after`, whose own step 0 is the last of the warm-up."""
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def _check(peak: float, warmup_steps: int, total_steps: int) -> None:
    if not peak > 0:
        raise InputError(f"optimizer.schedule.peak is {peak}; it must be above 0")
    if warmup_steps < 0:
        raise InputError(f"optimizer.schedule.warmup_steps is {warmup_steps}; it must not be negative")
    if warmup_steps >= total_steps:
        raise InputError(
            f"optimizer.schedule.warmup_steps is {warmup_steps}, but the run has {total_steps} steps and would end "
            f"before its peak; set it to at most {max(total_steps - 1, 0)}, or set steps above {warmup_steps}"
        )


def _check_end(peak: float, end: float) -> None:
    if not 0 <= end <= peak:
        raise InputError(f"optimizer.schedule.end is {end}; it must lie between 0 and the peak, {peak}")


def _check_epoch(steps: int) -> None:
    if steps < 1:
        raise InputError(f"optimizer.schedule.epoch_steps is {steps}; it must be at least 1")
