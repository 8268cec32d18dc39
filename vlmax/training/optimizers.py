"""The optimizer of an experiment: algorithm, schedule, clipping, decay, learning rates by pattern, freezing.

An update is, in this order: gradients clipped by their global norm; the algorithm's direction; plus weight decay times
the parameter; times the parameter's own multiplier; times minus the learning rate. So the decay is decoupled and scaled
by the parameter's learning rate, as in torch's AdamW. (big_vision multiplies its decay by the schedule but not by the
peak: divide its `wd` by its `lr` to get the number for here.)

Parameters are stacked over layers. Nothing here may mix layers: what is a vector, a matrix, a block or a factor is
decided within each layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from vlmax.errors import InputError
from vlmax.sharding.tables import Table
from vlmax.training import patterns
from vlmax.training.groups import Group, Kind, LayerDecay, group_table, groups
from vlmax.training.schedules import Schedule

Moment = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Times the learning rate, off every decaying parameter at every step."""
    moment_dtype: Moment = "float32"
    """How the first moment is stored; the second is always float32."""

    def direction(self, kinds: dict[str, Kind]) -> optax.GradientTransformation:
        """Gradients to the direction of ascent."""
        return optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=jnp.dtype(self.moment_dtype))

    def rules(self, kinds: dict[str, Kind]) -> dict[str, str]:
        """Path -> name of the rule that updates it."""
        return dict.fromkeys(kinds, "adamw")


@dataclasses.dataclass(frozen=True)
class Lion:
    """The sign of an interpolated momentum (Chen et al. 2023); learning rate 3 to 10 times below AdamW's."""

    b1: float = 0.9
    """Weight of the momentum in the direction."""
    b2: float = 0.99
    """Decay of the momentum."""
    weight_decay: float = 0.1
    """Times the learning rate, off every decaying parameter at every step."""
    moment_dtype: Moment = "float32"
    """How the momentum is stored."""

    def direction(self, kinds: dict[str, Kind]) -> optax.GradientTransformation:
        """Gradients to the direction of ascent."""
        return optax.scale_by_lion(self.b1, self.b2, mu_dtype=jnp.dtype(self.moment_dtype))

    def rules(self, kinds: dict[str, Kind]) -> dict[str, str]:
        """Path -> name of the rule that updates it."""
        return dict.fromkeys(kinds, "lion")


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer & Stern 2018), by default as Zhai et al. 2022 use it for ViTs (section 3.4).

    The second moment of a matrix is kept as the means of its rows and columns. The original of 2018 has
    `b2_cap=1.0, momentum=None, parameter_scale=True, smallest_factored=128`.
    """

    decay_exponent: float = 0.8
    """The second moment decays with 1 - t^-exponent at step t."""
    b2_cap: float = 0.999
    """... but with no more than this."""
    momentum: float | None = 0.9
    """Decay of the average of the directions; None: none is kept."""
    clip_rms: float | None = 1.0
    """Each layer's direction is scaled down to this root mean square; None: not."""
    parameter_scale: bool = False
    """Each layer's direction is multiplied by the root mean square of its parameter."""
    smallest_factored: int = 32
    """A second moment is factored over its two largest dimensions, if both are at least so large."""
    weight_decay: float = 0.0
    """Times the learning rate, off every decaying parameter at every step."""
    moment_dtype: Moment = "bfloat16"
    """How the momentum is stored."""

    def direction(self, kinds: dict[str, Kind]) -> optax.GradientTransformation:
        """Gradients to the direction of ascent."""

        def decay(step, exponent):
            return jnp.minimum(self.b2_cap, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -exponent)

        parts: list[optax.GradientTransformation] = [
            optax.scale_by_factored_rms(
                decay_rate=self.decay_exponent,
                min_dim_size_to_factor=self.smallest_factored,
                decay_rate_fn=decay,
            )
        ]
        if self.clip_rms is not None:
            parts.append(optax.clip_by_block_rms(self.clip_rms))
        if self.parameter_scale:
            parts.append(optax.scale_by_param_block_rms())
        if self.momentum is not None:
            dtype = jnp.dtype(self.moment_dtype)
            parts.append(optax.ema(self.momentum, debias=False, accumulator_dtype=dtype))
        return _per_layer(optax.chain(*parts), patterns.unflatten(kinds))

    def rules(self, kinds: dict[str, Kind]) -> dict[str, str]:
        """Path -> name of the rule that updates it."""
        return dict.fromkeys(kinds, "adafactor")


@dataclasses.dataclass(frozen=True)
class Muon:
    """Orthogonalised momentum for the hidden matrices of every layer, Adam for the rest (Jordan 2024).

    The rest: vectors, embeddings, positions, patch stems, projections out of the model, and what `adam` names. A step
    is scaled to the root mean square of Adam's (Liu et al. 2025, section 2.2), so one learning rate serves both.
    """

    momentum: float = 0.95
    """Decay of the (Nesterov) momentum of the matrices."""
    newton_schulz_steps: int = 5
    """Iterations of the orthogonalisation."""
    update_rms: float = 0.2
    """Root mean square of a matrix's step at learning rate 1."""
    adam: tuple[str, ...] = ()
    """Patterns of hidden matrices that Adam takes too."""
    adam_b1: float = 0.9
    """Adam: decay of the first moment."""
    adam_b2: float = 0.95
    """Adam: decay of the second moment."""
    adam_eps: float = 1e-8
    """Adam: added to the root of the second moment."""
    weight_decay: float = 0.1
    """Times the learning rate, off every decaying parameter at every step, whoever updates it."""
    moment_dtype: Moment = "float32"
    """How the momenta are stored."""

    def direction(self, kinds: dict[str, Kind]) -> optax.GradientTransformation:
        """Gradients to the direction of ascent."""
        rules, dtype = self.rules(kinds), jnp.dtype(self.moment_dtype)
        numbers = patterns.unflatten(
            {
                path: optax.contrib.MuonDimensionNumbers(*kind.matrix)
                if rules[path] == "muon" and kind.matrix
                else optax.MaskedNode()
                for path, kind in kinds.items()
            }
        )
        muon = optax.contrib.scale_by_muon(
            beta=self.momentum,
            ns_steps=self.newton_schulz_steps,
            mu_dtype=dtype,
            weight_dimension_numbers=lambda _: numbers,
        )
        adam = optax.scale_by_adam(self.adam_b1, self.adam_b2, self.adam_eps, mu_dtype=dtype)
        return optax.partition(
            {"muon": optax.chain(muon, _scale_to_rms(self.update_rms, numbers)), "adam": adam},
            patterns.unflatten(rules),
        )

    def rules(self, kinds: dict[str, Kind]) -> dict[str, str]:
        """Path -> name of the rule that updates it.

        Raises:
          InputError: a pattern of `adam` hits nothing.
        """
        named = patterns.union(self.adam, kinds, "optimizer.algorithm.adam")
        return {path: "muon" if kind.matrix and path not in named else "adam" for path, kind in kinds.items()}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How the parameters are changed. Patterns are regular expressions for whole parameter paths (patterns.py)."""

    algorithm: AdamW | Lion | Adafactor | Muon
    """Gradients to directions."""
    schedule: Schedule
    """The learning rate at every optimizer step."""
    clip_norm: float | None = None
    """Gradients of all trainable parameters together are scaled down to this norm; None: not."""
    decay_multipliers: tuple[tuple[str, float], ...] = ()
    """(pattern, factor of the weight decay), the first match counts. Unmatched: 0 for what is a vector or a scalar
    within its layer (biases, norms, class tokens, temperatures), 1 for the rest. ((".*", 1.0),) decays everything."""
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    """(pattern, factor of the learning rate), the first match counts; 1 for the rest."""
    layer_decay: tuple[LayerDecay, ...] = ()
    """Layer-wise decay of the learning rate, one for each stack that has it; multiplies `lr_multipliers`."""
    frozen: tuple[str, ...] = ()
    """Patterns of parameters that do not train: no gradient, no state."""

    def build(self, boxed: PyTree, total_steps: int, locked: Sequence[str] = ()) -> Built:
        """The optax transformation for a system's parameters.

        Args:
          boxed: all parameters, abstract or not, in their boxes.
          total_steps: optimizer steps of the whole run.
          locked: patterns of parameters that the system itself keeps fixed.

        Raises:
          InputError: a pattern hits nothing; a number makes no sense; the warm-up is longer than the run.
        """
        _check(self)
        schedule = self.schedule.build(total_steps)
        found = groups(
            boxed,
            frozen=self.frozen,
            locked=locked,
            lr_multipliers=self.lr_multipliers,
            decay_multipliers=self.decay_multipliers,
            layer_decay=self.layer_decay,
        )
        trains = {path: group for path, group in found.items() if not group.frozen}
        kinds = {path: group.kind for path, group in trains.items()}
        decays = {path: self.algorithm.weight_decay * group.decay for path, group in trains.items()}
        parts = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        parts.append(self.algorithm.direction(kinds))
        if any(decays.values()):
            parts.append(_add_decay(patterns.unflatten(decays)))
        if any(np.any(np.asarray(group.multiplier) != 1.0) for group in trains.values()):
            parts.append(_multiply(patterns.unflatten({path: group.multiplier for path, group in trains.items()})))
        parts.append(optax.scale_by_learning_rate(schedule))
        table = group_table(found, self.algorithm.rules(kinds), self.schedule.peak, self.algorithm.weight_decay)
        return Built(optax.chain(*parts), schedule, found, {path: group.frozen for path, group in found.items()}, table)


class Built(NamedTuple):
    """An optimizer for a given system.

    Attributes:
      transformation: over the nested dict of trainable parameters alone (`groups.split`).
      schedule: optimizer step -> learning rate, before multipliers.
      groups: path -> what is done with that parameter.
      frozen: path -> whether it is frozen.
      table: learning rate and decay of every group.
    """

    transformation: optax.GradientTransformation
    schedule: optax.Schedule
    groups: dict[str, Group]
    frozen: dict[str, bool]
    table: Table


def _check(optimizer: Optimizer) -> None:
    """Raises InputError for numbers outside their range."""
    if optimizer.clip_norm is not None and not optimizer.clip_norm > 0:
        raise InputError(f"optimizer.clip_norm is {optimizer.clip_norm}; it must be above 0, or None for no clipping")
    for field in dataclasses.fields(optimizer.algorithm):
        name, value = field.name, getattr(optimizer.algorithm, field.name)
        if name in ("b1", "b2", "momentum", "adam_b1", "adam_b2") and value is not None and not 0 <= value < 1:
            raise InputError(f"optimizer.algorithm.{name} is {value}; it must be at least 0 and below 1")
        positive = name in ("eps", "adam_eps", "clip_rms", "update_rms", "newton_schulz_steps")
        if positive and value is not None and not value > 0:
            raise InputError(f"optimizer.algorithm.{name} is {value}; it must be above 0")
    if not optimizer.algorithm.weight_decay >= 0:
        raise InputError(
            f"optimizer.algorithm.weight_decay is {optimizer.algorithm.weight_decay}; it must not be negative"
        )


def _add_decay(decays: PyTree[float]) -> optax.GradientTransformation:
    """Adds decay times the parameter."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p, d: u + d * p if d else u, updates, params, decays)
    )


def _multiply(multipliers: PyTree) -> optax.GradientTransformation:
    """Multiplies every update by its own number, or by its own vector over the layers."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, m: u * m, updates, multipliers))


def _scale_to_rms(rms: float, numbers: PyTree) -> optax.GradientTransformation:
    """Scales orthogonal matrices of every layer, whose rms is 1 / sqrt(the larger side), to the given one."""

    def scale(update, number):
        sides = (np.prod([update.shape[i] for i in axes]) for axes in number)
        return update * (rms * max(sides) ** 0.5)

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates, numbers))


def _per_layer(transformation: optax.GradientTransformation, kinds: PyTree[Kind]) -> optax.GradientTransformation:
    """Applies a transformation to every layer of every parameter as though it were a parameter of its own."""

    def each(function, kind: Kind):
        for _ in range(kind.stacked):
            function = jax.vmap(function)
        return function

    def init(params):
        return jax.tree.map(lambda kind, param: each(transformation.init, kind)(param), kinds, params)

    def update(updates, state, params=None):
        leaves, structure = jax.tree.flatten(updates)
        rest = [structure.flatten_up_to(tree) for tree in (state, params, kinds)]
        done: list[tuple[Any, Any]] = [
            each(transformation.update, kind)(u, s, p) for u, s, p, kind in zip(leaves, *rest, strict=True)
        ]
        return structure.unflatten([u for u, _ in done]), structure.unflatten([s for _, s in done])

    return optax.GradientTransformation(init, update)
