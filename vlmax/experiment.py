"""The whole schema of an experiment: everything that a run is made of, as one tree of frozen dataclasses.

An experiment file has `get_config(variant: str = "base") -> Experiment`. The objects in the tree are real: the
system, the sources and the evaluations are the dataclasses that their own files define.
"""

from __future__ import annotations

import dataclasses

from vlmax.data.images import CentreCrop, ImageTransform
from vlmax.data.pipeline import Data
from vlmax.errors import InputError, nearest
from vlmax.evaluation.evaluation import Evaluation
from vlmax.interop.pretrained import Pretrained
from vlmax.sharding.mesh import Mesh
from vlmax.systems.system import System
from vlmax.training.optimizers import Optimizer


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When the run is saved, and which saves are kept."""

    every_steps: int | None = 1000
    """Save after every so many steps; None: not by steps."""
    every_minutes: float | None = 15.0
    """Save when so many minutes have passed since the last save; None: not by time."""
    keep_last: int = 2
    """How many of the newest checkpoints stay."""
    keep_every: int | None = None
    """Checkpoints whose step divides by this stay for good; None: none does."""


@dataclasses.dataclass(frozen=True)
class Reports:
    """What the run writes for people, and how often."""

    every_steps: int = 10
    """Metrics are written every so many steps."""
    tensorboard: bool = True
    """Also as TensorBoard events."""
    first_batch_images: int = 16
    """How many images of the first batch are drawn with their texts."""


@dataclasses.dataclass(frozen=True)
class Safety:
    """When a run that goes wrong is stopped."""

    nonfinite_steps: int = 10
    """The run stops after so many steps in a row whose loss or gradient is not finite; each one is skipped."""
    step_timeout_seconds: float = 1800.0
    """All stacks are dumped and the process ends when no step completes in this time; compilation is given as much."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run.

    Raises:
      InputError: a number that makes no sense, named by its field.
    """

    name: str
    """The run's directory is runs/NAME unless --workdir says otherwise."""
    system: System
    """The model with its loss."""
    data: Data
    """Where examples come from and how they become batches."""
    optimizer: Optimizer
    """Algorithm, schedule, decay, freezing."""
    steps: int
    """Optimizer steps of the whole run."""
    init: tuple[Pretrained, ...] = ()
    """Parts of the system that start from checkpoints; what none of them names is initialised."""
    evaluation_image: ImageTransform = ImageTransform(CentreCrop())
    """What evaluations do to a picture; its size is the system's."""
    evaluations: tuple[Evaluation, ...] = ()
    """Run every `evaluate_every` steps and at the end."""
    evaluate_every: int | None = None
    """Evaluate after every so many steps; None: only at the end."""
    microbatches: int = 1
    """The global batch is worked through in so many parts; the gradient is that of the whole batch."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the parameters, which the evaluations then use; None: no average.
    After n updates it is at most (1 + n) / (10 + n), so that the fresh weights do not linger in a short run."""
    frozen_dtype: str = "bfloat16"
    """How frozen parameters are stored: float32 or bfloat16."""
    seed: int = 0
    """Seeds initialisation, dropout and the order of the data."""
    mesh: Mesh = Mesh()
    """How the devices are arranged."""
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Logical axis -> mesh axes, before the default table (vlmax/sharding/rules.py)."""
    checkpoints: Checkpoints = Checkpoints()
    reports: Reports = Reports()
    safety: Safety = Safety()

    def __post_init__(self):
        positive = {
            "steps": self.steps,
            "microbatches": self.microbatches,
            "evaluate_every": self.evaluate_every,
            "checkpoints.every_steps": self.checkpoints.every_steps,
            "checkpoints.every_minutes": self.checkpoints.every_minutes,
            "checkpoints.keep_last": self.checkpoints.keep_last,
            "checkpoints.keep_every": self.checkpoints.keep_every,
            "reports.every_steps": self.reports.every_steps,
            "reports.first_batch_images": self.reports.first_batch_images,
            "safety.nonfinite_steps": self.safety.nonfinite_steps,
            "safety.step_timeout_seconds": self.safety.step_timeout_seconds,
        }
        for field, value in positive.items():
            if value is not None and value <= 0:
                raise InputError(f"experiment {self.name!r}: {field} is {value}; it must be above 0")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"experiment {self.name!r}: ema_decay is {self.ema_decay}; it must lie between 0 and 1")
        if self.frozen_dtype not in ("float32", "bfloat16"):
            raise InputError(
                f"experiment {self.name!r}: frozen_dtype is {self.frozen_dtype!r}; it must be float32 or bfloat16"
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"experiment {self.name!r}: seed is {self.seed}; it must lie between 0 and {2**32 - 1}")
        names = [evaluation.name for evaluation in self.evaluations]
        if len(set(names)) < len(names):
            raise InputError(
                f"experiment {self.name!r}: two of its evaluations share a name, {names}, and one's scores would hide "
                "the other's; give each its own field `name`"
            )
        if self.data.batch_size % self.microbatches:
            below = max(d for d in range(1, self.microbatches + 1) if self.data.batch_size % d == 0)
            raise InputError(
                f"experiment {self.name!r}: data.batch_size {self.data.batch_size} does not divide into "
                f"{self.microbatches} microbatches; the nearest batch size that does is "
                f"{nearest_multiple(self.data.batch_size, self.microbatches)}, or set microbatches to {below}"
            )


def nearest_multiple(value: int, factor: int) -> int:
    """The multiple of `factor`, at least `factor`, that lies nearest to `value`."""
    return max(factor, round(value / factor) * factor)


def unknown_variant(variant: str, known: tuple[str, ...]) -> InputError:
    """What an experiment file's `get_config` raises for a variant that it does not have."""
    return InputError(f"the experiment has no variant {variant!r}; {nearest(variant, known)} (--config FILE:VARIANT)")
