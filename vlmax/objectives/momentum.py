"""Contrast with momentum: slow twins of the encoders, queues of their features, soft targets (ALBEF, BLIP).

Li et al. 2021 (arXiv 2107.07651, section 3.3) and BLIP (arXiv 2201.12086, section 3.2). An image is held against the
momentum features of all texts of the global batch and of a queue of earlier ones, M columns in all; a text likewise
against images. With x_i a feature over the temperature, c_j a column, and x'_i the momentum twin of x_i, its loss is
the cross-entropy of p_i = softmax_j(x_i c_j) with the targets

    q_i = alpha softmax_j(x'_i c_j) + (1 - alpha) [j is right for i] / (how many are right)

How `soft_contrastive` computes it. The columns have no gradient, so all that is wanted is, for every row,

    loss_i = log sum_j exp(x_i c_j) - x_i t_i        d loss_i / d x_i = sum_j p_ij c_j - t_i        t_i = sum_j q_ij c_j

and each of these sums is that of an attention whose keys and values are the columns. So one sweep over the columns, a
block at a time, with running maxima as in flash attention, gives the loss and its gradient together, and the backward
pass has nothing left to do. Rows and queue are sharded over the same devices; a block is gathered from slices of all of
them, and a device never holds more than its own rows of it, [B / devices, block] logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

Axes = tuple[str, ...]
Metrics = dict[str, Float[Array, ""]]

NOBODY = -1
"""The group of what a queue holds before anything was put there: right for no row."""

_NEVER = -1e30  # finite, so that differences of it stay numbers


def average(before: PyTree[Array], new: PyTree[Array], decay: Float[Array, ""] | float) -> PyTree[Array]:
    """`decay * before + (1 - decay) * new`, leaf by leaf, in the dtype of `before`; no gradient."""

    def one(old: Array, now: Array) -> Array:
        return (decay * old + (1 - decay) * lax.stop_gradient(now)).astype(old.dtype)

    return jax.tree.map(one, before, new)


def ramp(updates: Int[Array, ""], steps: int, height: float) -> Float[Array, ""]:
    """A line from 0 before the first update to `height` after so many steps, and `height` from then on."""
    return height * jnp.minimum(1.0, updates / max(steps, 1)) if steps else jnp.full((), height, jnp.float32)


def enqueue(queue: Float[Array, "K *rest"], new: Float[Array, "B *rest"], place: Int[Array, ""]) -> Array:
    """The queue with the places place, ..., place + B - 1 (round its end) taken by the new rows.

    Written as a choice for every place, so that a queue in pieces over devices stays where it is.
    """
    number = (jnp.arange(len(queue)) - place) % len(queue)
    taken = jnp.take(new, jnp.minimum(number, len(new) - 1), axis=0).astype(queue.dtype)
    return jnp.where((number < len(new)).reshape(-1, *[1] * (queue.ndim - 1)), taken, queue)


def dense_soft_contrastive(
    feature: Float[Array, "B E"],
    twin: Float[Array, "B E"],
    columns: Float[Array, "M E"],
    temperature: Float[Array, ""] | float,
    alpha: Float[Array, ""] | float,
    right: Float[Array, "B M"],
) -> Float[Array, ""]:
    """One direction with all logits in memory: the reference. `right` is 1 where a column is right for a row."""
    own, soft = feature @ columns.T / temperature, twin @ columns.T / temperature
    targets = alpha * jax.nn.softmax(soft) + (1 - alpha) * right / right.sum(axis=1, keepdims=True)
    return -jnp.sum(jax.nn.log_softmax(own) * lax.stop_gradient(targets), axis=1).mean()


def soft_contrastive(
    feature: Float[Array, "B E"],
    twin: Float[Array, "B E"],
    others: Float[Array, "B E"],
    queue: Float[Array, "K E"],
    *,
    temperature: Float[Array, ""] | float,
    alpha: Float[Array, ""] | float,
    group: Int[Array, " B"],
    queue_group: Int[Array, " K"],
    axes: Axes,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss of one direction over the global batch, sharded over the mesh in context and chunked.

    Args:
      feature: unit vectors of one side; the only ones with a gradient, beside the temperature.
      twin: the momentum encoder's for the same inputs.
      others: of the other side, the momentum encoder's; row i belongs to row i of `feature`.
      queue: earlier ones of the other side.
      temperature: what products of unit vectors are divided by.
      alpha: weight of the momentum encoder's opinion in the targets.
      group: ids of the examples; every column with the row's id is right for it. Its own always is.
      queue_group: ids of the queue.
      axes: the mesh axes over which rows and queue are sharded, major first; () for none.
      chunk: columns held against the rows at a time, at least one of each device.

    Returns:
      The mean of the losses, and the share of rows for which a right column comes first (without gradient).

    Raises:
      ValueError: `chunk` < 1.
    """
    if chunk < 1:
        raise ValueError(f"contrast with momentum: chunk is {chunk}; it must be at least 1")
    rows = feature.astype(jnp.float32) / temperature
    pair = lax.stop_gradient(jnp.stack([rows, twin.astype(jnp.float32) / temperature]))
    arguments = lax.stop_gradient((others, queue, jnp.asarray(alpha, jnp.float32)))

    def on_device(pair, group, others, queue, queue_group, alpha):
        columns = ((others, group), (queue, queue_group))
        return _rows_on_device(pair, group, columns, alpha, axes, chunk)

    if axes:
        row: Any = PartitionSpec(axes)
        on_device = jax.shard_map(
            on_device,
            in_specs=(PartitionSpec(None, axes), row, row, row, row, PartitionSpec()),
            out_specs=(row, row, row),
            axis_names=set(axes),
            check_vma=False,
        )
    others, queue, alpha = arguments
    loss, slope, first = on_device(pair, group, others, queue, queue_group, alpha)
    loss = loss + jnp.sum((rows - lax.stop_gradient(rows)) * slope, axis=1)  # the value as it is, and its gradient
    return loss.mean(), first.mean()


class _Seen(NamedTuple):
    """What is known of a device's b rows (0: their own logits, 1: those of their twins) after some of the columns."""

    top: Float[Array, "2 b"]
    mass: Float[Array, "2 b"]
    """Sum of exp(logit - top)."""
    mean: Float[Array, "2 b E"]
    """Sum of exp(logit - top) times the column."""
    right: Float[Array, "b E"]
    """Sum of the right columns."""
    count: Float[Array, " b"]
    best_right: Float[Array, " b"]
    best_wrong: Float[Array, " b"]


def _rows_on_device(
    rows: Float[Array, "2 b E"],
    group: Int[Array, " b"],
    columns: tuple[tuple[Float[Array, "k E"], Int[Array, " k"]], ...],
    alpha: Float[Array, ""],
    axes: Axes,
    chunk: int,
) -> tuple[Float[Array, " b"], Float[Array, "b E"], Float[Array, " b"]]:
    """Loss, its derivative by the row, and whether a right column comes first, of every row of this device."""
    devices = lax.axis_size(axes) if axes else 1
    none, never = jnp.zeros(rows.shape[:2]), jnp.full(rows.shape[:2], _NEVER)
    seen = _Seen(never, none, jnp.zeros_like(rows), jnp.zeros_like(rows[0]), none[0], never[0], never[0])

    def block(seen: _Seen, part: tuple[Array, Array], start: Int[Array, ""] | int, size: int) -> _Seen:
        here = (lax.dynamic_slice_in_dim(x, start, size) for x in part)
        features, ids = (lax.all_gather(x, axes, tiled=True) if axes else x for x in here)
        return _see(seen, rows, group, features.astype(jnp.float32), ids)

    for part in columns:
        step = min(max(chunk // devices, 1), len(part[1]))
        full, rest = divmod(len(part[1]), step)
        seen, _ = lax.scan(lambda s, at, p=part, n=step: (block(s, p, at, n), None), seen, step * jnp.arange(full))
        if rest:
            seen = block(seen, part, full * step, rest)

    mean = seen.mean / seen.mass[..., None]
    target = alpha * mean[1] + (1 - alpha) * seen.right / seen.count[:, None]
    loss = seen.top[0] + jnp.log(seen.mass[0]) - jnp.sum(rows[0] * target, axis=1)
    return loss, mean[0] - target, (seen.best_right > seen.best_wrong).astype(jnp.float32)


def _see(seen: _Seen, rows: Array, group: Array, columns: Float[Array, "c E"], ids: Int[Array, " c"]) -> _Seen:
    """After one more block of columns."""
    # HIGHEST: a TPU rounds float32 factors to bfloat16 otherwise, and the temperature makes a large error of it
    exact = lax.Precision.HIGHEST
    logits = jnp.einsum("sbe,ce->sbc", rows, columns, precision=exact)
    top = jnp.maximum(seen.top, logits.max(axis=2))
    weights, keep = jnp.exp(logits - top[..., None]), jnp.exp(seen.top - top)
    right = group[:, None] == ids[None, :]
    return _Seen(
        top=top,
        mass=keep * seen.mass + weights.sum(axis=2),
        mean=keep[..., None] * seen.mean + jnp.einsum("sbc,ce->sbe", weights, columns, precision=exact),
        right=seen.right + jnp.einsum("bc,ce->be", right.astype(jnp.float32), columns, precision=exact),
        count=seen.count + right.sum(axis=1),
        best_right=jnp.maximum(seen.best_right, jnp.where(right, logits[0], _NEVER).max(axis=1)),
        best_wrong=jnp.maximum(seen.best_wrong, jnp.where(right, _NEVER, logits[0]).max(axis=1)),
    )


def soft_contrastive_both(
    image: Float[Array, "B E"],
    text: Float[Array, "B E"],
    twins: Mapping[str, Float[Array, "B E"]],
    queue: Mapping[str, Array],
    **options: Any,
) -> tuple[Float[Array, ""], Metrics]:
    """The mean of both directions.

    Args:
      image: unit vectors of the images of the global batch.
      text: those of their texts.
      twins: the momentum encoders' `image` and `text`.
      queue: `image` and `text` `[K, E]` and `group` `[K]`.
      **options: `temperature`, `alpha`, `group`, `axes` and `chunk` of `soft_contrastive`.
    """
    options = {**options, "queue_group": queue["group"]}
    to_text, first_text = soft_contrastive(image, twins["image"], twins["text"], queue["text"], **options)
    to_image, first_image = soft_contrastive(text, twins["text"], twins["image"], queue["image"], **options)
    metrics = {
        "image_to_text_loss": to_text,
        "text_to_image_loss": to_image,
        "image_to_text_top1": first_text,
        "text_to_image_top1": first_image,
    }
    return (to_text + to_image) / 2, lax.stop_gradient(metrics)
