"""TrainState: everything that a run must carry from one step to the next, as one pytree."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vlmax.systems.system import Carried, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state after `step` optimizer steps.

    Attributes:
      step: how many global batches have been consumed, skipped steps included.
      trainable: the float32 parameters that the optimizer changes, a nested dict.
      frozen: the parameters that it does not, in the dtype that they are stored in.
      optimizer: optax state over `trainable`.
      carried: what the system keeps beside its parameters.
      ema: moving average of `trainable`; an empty dict where the experiment has none.
      nonfinite_in_row: steps skipped one after the other until now because loss or gradient was not finite.
      nonfinite_total: such steps since the start of the run.
    """

    step: Int[Array, ""]
    trainable: Params
    frozen: Params
    optimizer: Any
    carried: Carried
    ema: Params
    nonfinite_in_row: Int[Array, ""]
    nonfinite_total: Int[Array, ""]


def merge(a: Params, b: Params) -> Params:
    """Two nested dicts without a common leaf as one."""
    merged = dict(a)
    for name, value in b.items():
        merged[name] = merge(merged[name], value) if name in merged else value
    return merged


def params_of(state: TrainState) -> Params:
    """All parameters, trainable and frozen."""
    return merge(state.trainable, state.frozen)


def params_for_evaluation(state: TrainState) -> Params:
    """What evaluations use: the moving average where there is one."""
    return merge(state.ema or state.trainable, state.frozen)


def zero() -> Int[Array, ""]:
    """A counter at its start."""
    return jnp.zeros((), jnp.int32)


def state_bytes(state: TrainState) -> int:
    """Bytes of the whole state, over all devices, each array counted once."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
