"""Next-token cross-entropy over large vocabularies, without ever holding the logits of more than a few tokens.

`dense_next_token_loss` has all logits [B, T, V] in memory and reads like the definition; it is the reference.
`next_token_loss` trains: it gives the same sums and gradients, chunk by chunk, over a sharded vocabulary.

How the second form works. A device takes `chunk` tokens at a time, computes their logits, uses them and drops them.
The gradients are computed along with the value whenever someone differentiates (a loss is a scalar: the backward pass
only scales them), so that a chunk costs three products instead of the four of recomputing it later; the gradient of
the head, where it trains, is the one array that is carried from chunk to chunk.

Why shard_map and not the partitioner. The head is a parameter, sharded over `fsdp` and `tensor`; the tokens are
sharded over `data` and `fsdp`. The partitioner would gather the head over `fsdp` (1 GiB for LLaMA 3's 128,256 x 4,096),
and sum the head's gradient over devices in every turn of the loop. Here the vocabulary is sharded over `tensor` and
`fsdp` both (where the head is stored by its width over `fsdp`, one all-to-all at the beginning makes columns of it):
the devices of such a group put their chunks together (an all-gather of a few tokens), each computes the logits of its
own columns, three numbers a token are combined, and d(hidden) goes home by reduce-scatter. A device's part of the head
and of its gradient never moves inside the loop; over `data` the gradient is summed once, at the end.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vlmax.objectives.language_device import IGNORED, NOTHING, UNSHARDED, Axes, Gradients, Settings, on_device

Metrics = dict[str, Float[Array, ""]]
Sums = tuple[Float[Array, ""], Int[Array, ""], Metrics]


def dense_next_token_loss(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D rows"],
    labels: Int[Array, "B T"],
    *,
    vocab: int,
    bias: Float[Array, " rows"] | None = None,
    weights: Float[Array, "B T"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Sums:
    """`next_token_loss` with all logits in memory: the reference."""
    logits = (hidden @ head + (0 if bias is None else bias))[..., :vocab]
    valid = labels != IGNORED
    log_z = jax.nn.logsumexp(logits, axis=-1)
    log_p = logits - log_z[..., None]
    nll = -jnp.take_along_axis(log_p, jnp.where(valid, labels, 0)[..., None], axis=-1)[..., 0]
    losses = (1 - label_smoothing) * nll - label_smoothing * log_p.mean(axis=-1) + z_loss * log_z**2
    right = valid & (jnp.argmax(logits, axis=-1) == labels)
    weights = jnp.where(valid, jnp.ones_like(nll) if weights is None else weights, 0)
    metrics = {"nll": jnp.sum(weights * nll), "correct": jnp.sum(weights * right)}
    return jnp.sum(weights * losses), jnp.sum(valid), metrics


def next_token_loss(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D rows"],
    labels: Int[Array, "B T"],
    *,
    vocab: int,
    chunk: int,
    bias: Float[Array, " rows"] | None = None,
    weights: Float[Array, "B T"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    axes: Axes = UNSHARDED,
) -> Sums:
    """The sum of the losses of all positions with a label, and how many those are: the mean is loss / count.

    A position's loss is (1 - e) (-log p[label]) + e mean(-log p) + z log(Z)^2, with p = softmax of the V logits and
    log Z their logsumexp: label smoothing e as in torch's CrossEntropyLoss and BLIP, z-loss as in PaLM (arXiv
    2204.02311, section 5). Sums, so that the mean can be taken over a whole global batch, however it was accumulated.

    Args:
        hidden: after the final norm. Products are taken in its dtype; all sums are float32.
        head: the output matrix as it is stored: float32 where it trains (a bfloat16 one would need a float32 copy for
            its gradient), and what is cast is only what a product reads. No gradient is computed for a frozen one.
        labels: [b, t] is the token that position t of row b predicts, already shifted; -100 is not counted. Any other
            value outside 0 .. vocab - 1 makes the loss NaN.
        vocab: V. Columns of `head` from V on are padding, which changes nothing; with a multiple of 128 columns a
            device, a TPU makes no copies to align them.
        chunk: tokens whose logits [chunk, V] are in memory at a time, over all devices that share a head.
        bias: added to the logits (BERT).
        weights: what each position's loss is multiplied with, 1 unless given; they get no gradient. (VQA: how many
            people gave the answer.)
        label_smoothing: e, at least 0 and below 1.
        z_loss: z, e.g. 1e-4.
        axes: how the arrays lie on the mesh in context. A head with its columns over all of its axes stays where it is;
            one with its width over some is copied once, and its gradient back.

    Returns:
        The sum of the losses; the number of labels, whatever their weights; and sums that fall off without cost,
        without gradient: `nll` (neither smoothed nor with z-loss) and `correct`, labels whose logit is above all
        others, both weighted.

    Raises:
        ValueError: shapes or numbers do not fit, an axis is not of the mesh, or the devices do not divide B or T.
    """
    parts = _check(hidden, head, labels, bias, vocab, chunk, label_smoothing, z_loss, axes)
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"next-token loss: weights {weights.shape} and labels {labels.shape} must both be [B, T]")
    if missing := -head.shape[1] % parts:
        head = jnp.pad(head, ((0, 0), (0, missing)))
        bias = None if bias is None else jnp.pad(bias, (0, missing))
    settings = Settings(vocab, chunk, label_smoothing, z_loss, axes)
    loss, metrics = _differentiable(settings, hidden, head, bias, labels, weights)
    return loss, jnp.sum(labels != IGNORED, dtype=jnp.int32), lax.stop_gradient(metrics)


def _run(settings: Settings, wanted: Gradients, *arrays: Any) -> tuple[tuple[Array, Metrics], Gradients]:
    """Loss and metrics, and the gradients that are wanted, on the mesh in context."""
    axes, function = settings.axes, functools.partial(on_device, settings, wanted)
    names = {*axes.batch, *axes.tokens, *axes.vocab, *axes.embed}
    if names:
        rows: Any = PartitionSpec(axes.batch or None, axes.tokens or None)
        matrix: Any = PartitionSpec(axes.embed or None, axes.vocab or None)
        vector: Any = PartitionSpec(axes.vocab or None)
        specs = (rows if wanted.hidden else None, matrix if wanted.head else None, vector if wanted.bias else None)
        function = jax.shard_map(
            function,
            in_specs=(rows, matrix, vector, rows, rows),
            out_specs=(PartitionSpec(), Gradients(*specs)),
            axis_names=names,
            check_vma=False,
        )
    (loss, nll, correct), gradients = function(*arrays)
    return (loss, {"nll": nll, "correct": correct}), gradients


def _check(hidden, head, labels, bias, vocab, chunk, label_smoothing, z_loss, axes: Axes) -> int:
    """Number of parts of the vocabulary; raises what `next_token_loss` says."""
    if hidden.ndim != 3 or head.ndim != 2 or hidden.shape != (*labels.shape, head.shape[0]):
        raise ValueError(
            f"next-token loss: hidden {hidden.shape}, labels {labels.shape} and head {head.shape} must be [B, T, D], "
            "[B, T] and [D, rows]"
        )
    if not 1 <= vocab <= head.shape[1] or (bias is not None and bias.shape != head.shape[1:]):
        raise ValueError(
            f"next-token loss: vocab is {vocab}, head {head.shape} and bias {None if bias is None else bias.shape}; "
            "vocab must be between 1 and the columns of the head, and a bias have one value a column"
        )
    if chunk < 1 or not 0 <= label_smoothing < 1 or not 0 <= z_loss < math.inf:
        raise ValueError(
            f"next-token loss: chunk is {chunk}, label_smoothing {label_smoothing} and z_loss {z_loss}; they must be "
            "at least 1, in [0, 1) and not negative"
        )
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    rows = (*axes.batch, *axes.tokens)
    columns = (*axes.vocab, *axes.embed)
    if unknown := [axis for axis in (*rows, *columns) if axis not in sizes]:
        raise ValueError(f"next-token loss: axes {unknown} are not of the mesh in context, which has {sizes}")
    if len(set(rows)) < len(rows) or len(set(columns)) < len(columns):
        raise ValueError(f"next-token loss: {axes} names an axis twice for the tokens or for the head")
    dimensions = (("B", *labels.shape[:1], axes.batch), ("T", *labels.shape[1:], axes.tokens))
    for name, size, over in (*dimensions, ("D", head.shape[0], axes.embed)):
        if size % (devices := math.prod(sizes[axis] for axis in over)):
            raise ValueError(f"next-token loss: {name} {size} is not a multiple of the {devices} devices of {over}")
    return math.prod(sizes[axis] for axis in columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(settings: Settings, hidden, head, bias, labels, weights) -> tuple[Array, Metrics]:
    return _run(settings, NOTHING, hidden, head, bias, labels, weights)[0]


def _forward(settings: Settings, hidden, head, bias, labels, weights):
    wanted = Gradients(hidden.perturbed, head.perturbed, bias is not None and bias.perturbed)
    bias, weights = (None if x is None else x.value for x in (bias, weights))
    values = (hidden.value, head.value, bias, labels.value, weights)
    return _run(settings, wanted, *values)


def _backward(settings: Settings, gradients: Gradients, cotangents):
    slope = cotangents[0]
    if isinstance(slope, SymbolicZero):
        gradients = NOTHING
    scaled = (None if g is None else (slope * g.astype(jnp.float32)).astype(g.dtype) for g in gradients)
    return *scaled, None, None


_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)
