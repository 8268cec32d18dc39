"""Contrastive losses over the global batch: CLIP's softmax (arXiv 2103.00020) and SigLIP's sigmoid (arXiv 2303.15343).

Two forms of each. `dense_softmax` and `dense_sigmoid` hold the whole [B, B] matrix of logits and read like the papers;
they are the reference. `softmax_contrastive` and `sigmoid_contrastive` train: sharded over the mesh and chunked, they
give the same value and the same gradients, and a device never holds more of the square than one tile.

How the second form works. Each of the n devices keeps its own B/n images. In every step it contributes a slice of its
texts, an all-gather makes the slices of all devices one block of at most `chunk` texts, and the device computes the
tile [B/n, chunk] of logits, uses it and drops it. An image's statistics are then complete on its device; a text's
are B partial numbers combined once at the end. In the gradient a block's share of d(text) goes home by reduce-scatter.

* Slices gathered from everywhere, rather than shards that travel round a ring, because a torus moves an all-gather over
  all of its links at once and the number of steps depends on `chunk`, not on the number of devices (256 hops there,
  8 gathers here, for a batch of 32,768 over 256 chips); memory is bounded by the block either way.
* The gradients are computed along with the value whenever someone differentiates (a loss is a scalar: the backward pass
  only scales them). So the sigmoid needs one sweep over the square, the softmax two (first the normalisers, then the
  gradients), and where one tile covers everything the compiler shares its logits between the two.
* Every pair is either the positive (the diagonal, computed apart) or a negative (in the tiles). A softmax term is
  softplus(logsumexp(negatives) - positive), which stays exact when the loss is close to zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

Axes = tuple[str, ...]
Metrics = dict[str, Float[Array, ""]]

_NEVER = -1e30  # the logit of a pair that does not count; finite, so that maxima and differences of it stay numbers


def dense_softmax(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    log_scale: Float[Array, ""] | float,
    *,
    group: Int[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """Symmetric InfoNCE, mean of both directions, with the whole square in memory: the reference.

    Args:
        image: L2-normalised image embeddings; row i belongs to row i of `text`.
        text: L2-normalised text embeddings.
        log_scale: natural logarithm of the inverse temperature.
        group: ids of the examples; two different rows with one id are not negatives of each other.
    """
    logits = jnp.exp(log_scale) * _products(image, text)
    logits = jnp.where(_dense_counts(len(image), group), logits, -jnp.inf)
    rows = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
    columns = jax.nn.logsumexp(logits, axis=0) - jnp.diagonal(logits)
    return (rows.mean() + columns.mean()) / 2


def dense_sigmoid(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    log_scale: Float[Array, ""] | float,
    bias: Float[Array, ""] | float,
    *,
    group: Int[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """SigLIP's loss, the sum over all pairs divided by B, with the whole square in memory: the reference.

    Arguments are those of `dense_softmax`; `bias` is added to every logit.
    """
    logits = jnp.exp(log_scale) * _products(image, text) + bias
    signs = 2 * jnp.eye(len(image)) - 1
    pairs = jnp.where(_dense_counts(len(image), group), -jax.nn.log_sigmoid(signs * logits), 0)
    return pairs.sum() / len(image)


def _dense_counts(size: int, group: Int[Array, "B"] | None) -> Array:
    positive = jnp.eye(size, dtype=bool)
    return positive | (jnp.ones_like(positive) if group is None else group[:, None] != group[None, :])


def softmax_contrastive(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    log_scale: Float[Array, ""] | float,
    *,
    axes: Axes,
    chunk: int,
    group: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """`dense_softmax`, sharded over the mesh in context and chunked, in the forward and the backward pass.

    Args:
        image: L2-normalised image embeddings of the global batch; row i belongs to row i of `text`.
        text: L2-normalised text embeddings. Gathered in their own dtype; all sums are float32.
        log_scale: natural logarithm of the inverse temperature.
        axes: the mesh axes over which rows are sharded, major first; () for none. Other axes are left to the compiler.
        chunk: texts per tile. At least one of each device is taken; need not divide anything.
        group: ids of the examples; two different rows with one id are not negatives of each other.

    Returns:
        The loss, and what falls off without cost (no gradient flows through it): the loss of each direction and the
        share of rows whose positive beats every negative of the batch.

    Raises:
        ValueError: shapes differ, `chunk` < 1, an axis is not of the mesh, or the devices do not divide the batch.
    """
    loss, metrics = _differentiable(_softmax_shard, axes, chunk, image, text, log_scale, 0.0, group)
    return loss, lax.stop_gradient(metrics)


def sigmoid_contrastive(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    log_scale: Float[Array, ""] | float,
    bias: Float[Array, ""] | float,
    *,
    axes: Axes,
    chunk: int,
    group: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """`dense_sigmoid`, sharded over the mesh in context and chunked, in the forward and the backward pass.

    Arguments and errors are those of `softmax_contrastive`; `bias` is added to every logit.

    Returns:
        The loss, and its two parts, those of the positive and of the negative pairs (no gradient flows through them).
    """
    loss, metrics = _differentiable(_sigmoid_shard, axes, chunk, image, text, log_scale, bias, group)
    return loss, lax.stop_gradient(metrics)


class _Gradients(NamedTuple):
    """Gradients of the loss, one device's rows of the embeddings."""

    image: Float[Array, "b D"]
    text: Float[Array, "b D"]
    log_scale: Float[Array, ""]
    bias: Float[Array, ""]


@dataclass(frozen=True)
class _Shard:
    """What one of n devices sees: its b = B/n rows, and a few numbers about every column of the square."""

    image: Float[Array, "b D"]
    text: Float[Array, "b D"]
    scale: Float[Array, ""]
    bias: Float[Array, ""]
    group: Int[Array, "b"] | None
    axes: Axes
    step: int  # rows that every device gives to a block

    @property
    def devices(self) -> int:
        return lax.axis_size(self.axes) if self.axes else 1

    @property
    def index(self) -> Int[Array, ""] | int:
        return lax.axis_index(self.axes) if self.axes else 0

    @property
    def rows(self) -> Int[Array, "b"]:
        """Positions of this device's rows in the global batch."""
        return self.index * len(self.image) + jnp.arange(len(self.image))

    def columns(self) -> dict[str, Int[Array, "n b"]]:
        """Positions, and groups where there are any, of all columns."""
        local = len(self.image)
        columns = {"position": jnp.arange(self.devices * local).reshape(self.devices, local)}
        if self.group is not None:
            columns["group"] = self.gather(self.group).reshape(self.devices, local)
        return columns

    def gather(self, x: Float[Array, "c *rest"]) -> Float[Array, "n*c *rest"]:
        return lax.all_gather(x, self.axes, tiled=True) if self.axes else x

    def scatter(self, x: Float[Array, "n*c *rest"]) -> Float[Array, "c *rest"]:
        return lax.psum_scatter(x, self.axes, tiled=True) if self.axes else x

    def sum(self, x: Any) -> Any:
        return lax.psum(x, self.axes) if self.axes else x

    def max(self, x: Array) -> Array:
        return lax.pmax(x, self.axes) if self.axes else x

    def positives(self) -> Float[Array, "b"]:
        """Logits of this device's matching pairs."""
        image, text = self.image.astype(jnp.float32), self.text.astype(jnp.float32)
        return self.scale * jnp.sum(image * text, axis=1) + self.bias

    def negatives(self, texts: Float[Array, "c D"], columns: dict[str, Array]) -> Float[Array, "b c"]:
        """One tile of logits; what is not a negative pair is `_NEVER`."""
        other = self.rows[:, None] != columns["position"]
        if self.group is not None:
            other &= self.group[:, None] != columns["group"]
        return jnp.where(other, self.scale * _products(self.image, texts) + self.bias, _NEVER)


def _products(image: Float[Array, "b D"], text: Float[Array, "c D"]) -> Float[Array, "b c"]:
    # HIGHEST: a TPU rounds float32 factors to bfloat16 otherwise, and the scale makes 100 times the error of it
    return jnp.dot(image, text.T, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _over_blocks(shard: _Shard, body: Callable, carry: Any, columns: dict[str, Float[Array, "n b"]]) -> tuple[Any, Any]:
    """Folds `body(carry, texts [c, D], columns of the block [c]) -> (carry, outputs)` over all blocks of texts.

    Outputs are arrays [p, step, ...]; they come back joined along their second axis, [p, b, ...]. A last block of
    fewer rows is its own call, with its own shapes: nothing is padded.
    """
    full, rest = divmod(len(shard.text), shard.step)

    def block(carry: Any, start: Int[Array, ""] | int, size: int) -> tuple[Any, Any]:
        texts = shard.gather(lax.dynamic_slice_in_dim(shard.text, start, size))
        here = {k: lax.dynamic_slice_in_dim(v, start, size, axis=1).reshape(-1) for k, v in columns.items()}
        return body(carry, texts, here)

    if full == 1:
        carry, outputs = block(carry, 0, shard.step)
        parts = [outputs]
    else:
        starts = shard.step * jnp.arange(full)
        carry, outputs = lax.scan(lambda carry, start: block(carry, start, shard.step), carry, starts)
        parts = [jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), outputs)]
    if rest:
        carry, outputs = block(carry, full * shard.step, rest)
        parts.append(outputs)
    return carry, jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *parts) if rest else parts[0]


def _weighted_sums(
    shard: _Shard, d_image: Float[Array, "b D"], weights: Float[Array, "b c"], texts: Float[Array, "c D"]
) -> tuple[Float[Array, "b D"], Float[Array, "1 step D"]]:
    """Adds one tile's share to d(image); gives that of the block's texts, summed over devices, to their owners."""
    exact = functools.partial(jnp.dot, precision=lax.Precision.HIGHEST)
    d_image = d_image + exact(weights, texts.astype(jnp.float32))
    return d_image, shard.scatter(exact(weights.T, shard.image.astype(jnp.float32)))[None]


def _finish(
    shard: _Shard,
    d_image: Float[Array, "b D"],
    d_text: Float[Array, "b D"],
    d_positive: Float[Array, "b"],
    d_bias: Float[Array, ""],
    unit: float,
) -> _Gradients:
    """Adds the positives' share, and turns sums weighted with d(loss)/d(logit) into gradients of the inputs."""
    image, text = shard.image.astype(jnp.float32), shard.text.astype(jnp.float32)
    d_image = unit * shard.scale * (d_image + d_positive[:, None] * text)
    d_text = unit * shard.scale * (d_text + d_positive[:, None] * image)
    d_log_scale = shard.sum(jnp.sum(image * d_image))  # d(logit)/d(log_scale) is the logit without its bias
    return _Gradients(d_image.astype(shard.image.dtype), d_text.astype(shard.text.dtype), d_log_scale, unit * d_bias)


def _softmax_shard(shard: _Shard, gradient: bool) -> tuple[Float[Array, ""], Metrics, _Gradients | None]:
    """Loss, metrics and gradients, on one device."""
    total = shard.devices * len(shard.image)
    positive, columns = shard.positives(), shard.columns()

    def normalise(carry: tuple[Array, Array], texts: Array, here: dict[str, Array]) -> tuple[Any, Any]:
        highest, mass = carry
        logits = shard.negatives(texts, here)
        top = jnp.maximum(highest, logits.max(axis=1))
        mass = mass * jnp.exp(highest - top) + jnp.exp(logits - top[:, None]).sum(axis=1)
        column_top = logits.max(axis=0)
        column_mass = jnp.exp(logits - column_top).sum(axis=0)
        return (top, mass), jax.tree.map(lambda x: x.reshape(shard.devices, -1), (column_top, column_mass))

    start = (jnp.full_like(positive, _NEVER), jnp.zeros_like(positive))
    (row_top, row_mass), (top, mass) = _over_blocks(shard, normalise, start, columns)
    column_top = shard.max(top)
    column_lse = column_top + jnp.log(shard.sum(mass * jnp.exp(top - column_top)))
    row_lse = row_top + jnp.log(row_mass)

    beaten = positive - 1e-6 * shard.scale  # a lead within rounding is none: collapsed embeddings score 0, not 1
    row_gap, column_gap = row_lse - positive, column_lse[shard.index] - positive
    to_text, to_image, right_text, right_image = shard.sum(
        jnp.stack([
            jax.nn.softplus(row_gap).sum(),
            jax.nn.softplus(column_gap).sum(),
            jnp.sum(beaten > row_top, dtype=jnp.float32),
            jnp.sum(beaten > column_top[shard.index], dtype=jnp.float32),
        ])
    ) / total  # fmt: skip
    metrics = {
        "image_to_text_loss": to_text,
        "text_to_image_loss": to_image,
        "image_to_text_top1": right_text,
        "text_to_image_top1": right_image,
    }
    loss = (to_text + to_image) / 2
    if not gradient:
        return loss, metrics, None

    row_total = jnp.logaddexp(row_lse, positive)[:, None]
    columns["total"] = jnp.logaddexp(column_lse, shard.gather(positive).reshape(column_lse.shape))

    def differentiate(d_image: Array, texts: Array, here: dict[str, Array]) -> tuple[Array, Array]:
        logits = shard.negatives(texts, here)
        weights = jnp.exp(logits - row_total) + jnp.exp(logits - here["total"])
        return _weighted_sums(shard, d_image, weights, texts)

    d_image, d_text = _over_blocks(shard, differentiate, jnp.zeros(shard.image.shape, jnp.float32), columns)
    d_positive = -jax.nn.sigmoid(row_gap) - jax.nn.sigmoid(column_gap)
    return loss, metrics, _finish(shard, d_image, d_text[0], d_positive, jnp.zeros(()), 1 / (2 * total))


def _sigmoid_shard(shard: _Shard, gradient: bool) -> tuple[Float[Array, ""], Metrics, _Gradients | None]:
    """Loss, metrics and gradients, on one device."""
    total = shard.devices * len(shard.image)
    positive = shard.positives()

    def sweep(carry: tuple[Array, Array, Array], texts: Array, here: dict[str, Array]) -> tuple[Any, Any]:
        row_loss, row_weight, d_image = carry
        logits = shard.negatives(texts, here)
        small = jnp.exp(-jnp.abs(logits))
        row_loss = row_loss + (jnp.maximum(logits, 0) + jnp.log1p(small)).sum(axis=1)
        if not gradient:
            return (row_loss, row_weight, d_image), None
        weights = jnp.where(logits < 0, small, 1) / (1 + small)
        row_weight = row_weight + weights.sum(axis=1)
        d_image, d_text = _weighted_sums(shard, d_image, weights, texts)
        return (row_loss, row_weight, d_image), d_text

    zeros = jnp.zeros_like(positive)
    start = (zeros, zeros, jnp.zeros(shard.image.shape, jnp.float32))
    (row_loss, row_weight, d_image), d_text = _over_blocks(shard, sweep, start, shard.columns())
    d_positive = -jax.nn.sigmoid(-positive)
    sums = jnp.stack([jax.nn.softplus(-positive).sum(), row_loss.sum(), d_positive.sum() + row_weight.sum()])
    positive_loss, negative_loss, d_bias = shard.sum(sums)
    metrics = {"positive_loss": positive_loss / total, "negative_loss": negative_loss / total}
    loss = (positive_loss + negative_loss) / total
    if not gradient:
        return loss, metrics, None
    return loss, metrics, _finish(shard, d_image, d_text[0], d_positive, d_bias, 1 / total)


def _run(form: Callable, axes: Axes, chunk: int, gradient: bool, image, text, log_scale, bias, group) -> Any:
    """Runs `form` on every device of `axes`, or plainly where there are none."""
    devices = _check(axes, chunk, image, text)
    local = len(image) // devices
    step = min(max(chunk // devices, 1), local)

    def on_device(image: Array, text: Array, log_scale: Array, bias: Array, group: Array | None) -> Any:
        return form(_Shard(image, text, jnp.exp(log_scale), bias, group, axes, step), gradient)

    arguments = (image, text, jnp.asarray(log_scale, jnp.float32), jnp.asarray(bias, jnp.float32), group)
    if not axes:
        return on_device(*arguments)
    rows: Any = PartitionSpec(axes)
    one: Any = PartitionSpec()
    return jax.shard_map(
        on_device,
        in_specs=(rows, rows, one, one, rows),
        out_specs=(one, one, _Gradients(rows, rows, one, one) if gradient else None),
        axis_names=set(axes),
        check_vma=False,
    )(*arguments)


def _check(axes: Axes, chunk: int, image: Array, text: Array) -> int:
    """Number of devices over which rows are sharded."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"contrastive loss: image {image.shape} and text {text.shape} must both be [B, D]")
    if chunk < 1:
        raise ValueError(f"contrastive loss: chunk is {chunk}; it must be at least 1")
    if unknown := [axis for axis in axes if axis not in sizes]:
        raise ValueError(f"contrastive loss: axes {unknown} are not of the mesh in context, which has {sizes}")
    devices = math.prod(sizes[axis] for axis in axes)
    if len(image) % devices:
        raise ValueError(f"contrastive loss: batch {len(image)} is not a multiple of the {devices} devices of {axes}")
    return devices


def _value(form: Callable, axes: Axes, chunk: int, image, text, log_scale, bias, group):
    loss, metrics, _ = _run(form, axes, chunk, False, image, text, log_scale, bias, group)
    return loss, metrics


def _forward(form: Callable, axes: Axes, chunk: int, image, text, log_scale, bias, group):
    loss, metrics, gradients = _run(form, axes, chunk, True, image, text, log_scale, bias, group)
    return (loss, metrics), gradients


def _backward(form: Callable, axes: Axes, chunk: int, gradients: _Gradients, cotangents: tuple[Array, Metrics]):
    scaled = (cotangents[0] * g.astype(jnp.float32) for g in gradients)
    return *(s.astype(g.dtype) for s, g in zip(scaled, gradients, strict=True)), None


_differentiable: Any = jax.custom_vjp(_value, nondiff_argnums=(0, 1, 2))
_differentiable.defvjp(_forward, _backward)
