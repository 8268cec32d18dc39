"""One device's part in the chunked next-token loss of language.py: its columns of the head, and what they do."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

IGNORED = -100
"""The label of a position that is not learned, as in torch."""

_PIECE = 2048  # columns of the head that are cast at a time
_NEVER = -1e30  # the logit of a column that does not count; finite, so that maxima and differences of it stay numbers


@dataclass(frozen=True)
class Axes:
    """The mesh axes over which each dimension of the loss is sharded, major first; () for none."""

    batch: tuple[str, ...] = ()
    """Of the examples B."""
    tokens: tuple[str, ...] = ()
    """Of the positions T."""
    vocab: tuple[str, ...] = ()
    """Of the columns of the head."""
    embed: tuple[str, ...] = ()
    """Of the width D of the head."""


UNSHARDED = Axes()


@dataclass(frozen=True)
class Settings:
    """The numbers of one loss."""

    vocab: int
    chunk: int
    label_smoothing: float
    z_loss: float
    axes: Axes

    @property
    def columns(self) -> tuple[str, ...]:
        """Axes over which the vocabulary is sharded inside the loss."""
        return (*self.axes.vocab, *self.axes.embed)

    @property
    def gathered(self) -> tuple[str, ...]:
        """Axes that tokens and vocabulary share: chunks are put together over them."""
        return tuple(axis for axis in self.columns if axis in (*self.axes.batch, *self.axes.tokens))

    @property
    def replicated(self) -> tuple[str, ...]:
        """Axes of the vocabulary alone: every device has the same tokens."""
        return tuple(axis for axis in self.columns if axis not in self.gathered)

    @property
    def separate(self) -> tuple[str, ...]:
        """Axes of the tokens alone: every device has the same columns of the head."""
        return tuple(axis for axis in (*self.axes.batch, *self.axes.tokens) if axis not in self.gathered)


class Gradients(NamedTuple):
    """Of the sum of losses; None where nobody asks. Also: which are wanted, and how they are sharded."""

    hidden: Any
    head: Any
    bias: Any


NOTHING = Gradients(None, None, None)


class Tile(NamedTuple):
    """The logits of a chunk of c tokens over this device's v columns, and what is known of every token."""

    logits: Float[Array, "c v"]
    log_z: Float[Array, " c"]
    target: Float[Array, " c"]
    """The label's logit."""
    highest: Float[Array, " c"]
    """Of all other logits."""
    total: Float[Array, " c"]
    """Sum of the logits; 0 where nothing is smoothed."""


@dataclass(frozen=True)
class Columns:
    """A device's columns of the head, and what they do with a chunk of tokens."""

    head: Float[Array, "D v"]
    bias: Float[Array, " v"] | None
    settings: Settings

    @property
    def ids(self) -> Int[Array, " v"]:
        """The tokens of the columns."""
        size, axes = self.head.shape[1], self.settings.columns
        return (lax.axis_index(axes) if axes else 0) * size + jnp.arange(size)

    def pieces(self, tokens: Float[Array, "c D"], body: Any, carry: Any) -> Any:
        """Folds `body(carry, start, columns of the head in the tokens' dtype)`.

        A head of another dtype is cast a piece at a time, so that no copy of the whole is kept. XLA:TPU would move the
        cast out of all loops, past slices and barriers, but not past integers that have the same bits.
        """
        if self.head.dtype == tokens.dtype:
            return body(carry, 0, self.head)
        integer = jnp.dtype(f"uint{8 * self.head.dtype.itemsize}")

        def piece(carry: Any, start: Int[Array, ""] | int, size: int) -> tuple[Any, None]:
            columns = lax.dynamic_slice_in_dim(self.head, start, size, axis=1)
            bits = lax.optimization_barrier(lax.bitcast_convert_type(columns, integer))
            return body(carry, start, lax.bitcast_convert_type(bits, self.head.dtype).astype(tokens.dtype)), None

        return _over_blocks(piece, carry, self.head.shape[1], _PIECE)[0]

    def tile(self, tokens: Float[Array, "c D"], labels: Int[Array, " c"]) -> Tile:
        """The logits of some tokens, and their sums over all devices that have a part of the vocabulary."""
        axes, ids = self.settings.columns, self.ids

        def products(logits: Array, start: Int[Array, ""] | int, columns: Array) -> Array:
            part = jnp.einsum("cd,dv->cv", tokens, columns, preferred_element_type=jnp.float32)
            if self.bias is not None:
                part = part + lax.dynamic_slice_in_dim(self.bias, start, part.shape[1]).astype(jnp.float32)
            part = jnp.where(lax.dynamic_slice_in_dim(ids, start, part.shape[1]) < self.settings.vocab, part, _NEVER)
            return part if part.shape == logits.shape else lax.dynamic_update_slice_in_dim(logits, part, start, axis=1)

        logits = self.pieces(tokens, products, jnp.zeros((len(tokens), len(ids)), jnp.float32))
        is_label = labels[:, None] == ids
        highest = jnp.where(is_label, _NEVER, logits).max(axis=1)
        highest = lax.pmax(highest, axes) if axes else highest
        target = jnp.where(is_label, logits, 0).sum(axis=1)
        smooth = self.settings.label_smoothing > 0
        total = jnp.where(ids < self.settings.vocab, logits, 0).sum(axis=1) if smooth else jnp.zeros_like(target)
        target, total = _sum((target, total), axes)
        top = jnp.maximum(highest, target)
        log_z = top + jnp.log(_sum(jnp.exp(logits - top[:, None]).sum(axis=1), axes))
        return Tile(logits, log_z, target, highest, total)

    def sums(self, tile: Tile, counts: Float[Array, " c"]) -> Float[Array, "3"]:
        """Loss, negative log-likelihood and number of right tokens."""
        settings = self.settings
        nll = tile.log_z - tile.target
        uniform = tile.log_z - tile.total / settings.vocab
        losses = nll + settings.label_smoothing * (uniform - nll) + settings.z_loss * tile.log_z**2
        each = jnp.stack([losses, nll, (tile.target > tile.highest).astype(jnp.float32)])
        return jnp.where(counts == 0, 0, counts * each).sum(axis=1)

    def gradients(
        self, tile: Tile, tokens: Float[Array, "c D"], labels: Int[Array, " c"], counts: Array, before: Gradients
    ) -> Gradients:
        """This chunk's part of the gradients: hidden of the chunk by these columns, head and bias added to `before`."""

        def add(x: Array, part: Array, start: Int[Array, ""] | int, axis: int) -> Array:
            here = lax.dynamic_slice_in_dim(x, start, part.shape[axis], axis)
            return lax.dynamic_update_slice_in_dim(x, here + part, start, axis)

        def differentiate(after: Gradients, start: Int[Array, ""] | int, columns: Array) -> Gradients:
            d_logits = self.d_logits(tile, labels, counts, start, columns.shape[1])
            hidden, head, bias = after
            if bias is not None:
                bias = add(bias, d_logits.sum(axis=0), start, axis=0)
            d_logits = d_logits.astype(tokens.dtype)
            if hidden is not None:
                hidden = hidden + jnp.einsum("cv,dv->cd", d_logits, columns, preferred_element_type=jnp.float32)
            if head is not None:
                part = jnp.einsum("cd,cv->dv", tokens, d_logits, preferred_element_type=jnp.float32)
                head = add(head, part, start, axis=1)
            return Gradients(hidden, head, bias)

        return self.pieces(tokens, differentiate, before)

    def d_logits(self, tile: Tile, labels: Array, counts: Array, start: Any, size: int) -> Float[Array, "c p"]:
        """Derivative of the sum of losses by some of the logits."""
        settings = self.settings
        logits = lax.dynamic_slice_in_dim(tile.logits, start, size, axis=1)
        ids = lax.dynamic_slice_in_dim(self.ids, start, size)
        d_logits = jnp.exp(logits - tile.log_z[:, None]) * (1 + 2 * settings.z_loss * tile.log_z)[:, None]
        d_logits = d_logits - jnp.where(labels[:, None] == ids, 1 - settings.label_smoothing, 0)
        if settings.label_smoothing:
            d_logits = d_logits - jnp.where(ids < settings.vocab, settings.label_smoothing / settings.vocab, 0)
        return jnp.where(counts[:, None] == 0, 0, counts[:, None] * d_logits)


def _sum(x: Any, axes: tuple[str, ...]) -> Any:
    return lax.psum(x, axes) if axes else x


def _exchange(x: Array, axes: tuple[str, ...], split: int, join: int) -> Array:
    return lax.all_to_all(x, axes, split, join, tiled=True) if axes else x


def _over_blocks(block: Any, carry: Any, length: int, step: int) -> tuple[Any, Any]:
    """Folds `block(carry, start, size) -> (carry, outputs)` over a length; outputs come back joined.

    A last block of fewer elements is its own call, with its own shapes: nothing is padded.
    """
    full, rest = divmod(length, step)
    outputs = []
    if full == 1:
        carry, first = block(carry, 0, step)
        outputs.append(first)
    elif full:
        carry, many = lax.scan(lambda carry, start: block(carry, start, step), carry, step * jnp.arange(full))
        outputs.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), many))
    if rest:
        carry, last = block(carry, full * step, rest)
        outputs.append(last)
    return carry, outputs[0] if len(outputs) == 1 else jax.tree.map(lambda *xs: jnp.concatenate(xs), *outputs)


def on_device(
    settings: Settings,
    wanted: Gradients,
    hidden: Float[Array, "b t D"],
    head: Float[Array, "d w"],
    bias: Float[Array, " w"] | None,
    labels: Int[Array, "b t"],
    weights: Float[Array, "b t"] | None,
) -> tuple[Float[Array, "3"], Gradients]:
    """Sums over all devices and the gradients of this device's arrays."""
    embed, gathered = settings.axes.embed, settings.gathered
    columns = Columns(_exchange(head.astype(hidden.dtype), embed, 1, 0) if embed else head, None, settings)
    if bias is not None:
        size = columns.head.shape[1]
        mine = lax.axis_index(embed) * size if embed else 0
        columns = replace(columns, bias=lax.dynamic_slice_in_dim(bias, mine, size))
    flat_hidden, flat_labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    flat = (flat_hidden, flat_labels, *(() if weights is None else (weights.reshape(-1),)))
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)

    def block(carry: tuple[Array, Any, Any], start: Int[Array, ""] | int, size: int) -> tuple[Any, Any]:
        sums, d_head, d_bias = carry
        here = (lax.dynamic_slice_in_dim(x, start, size) for x in flat)
        tokens, labels, *weight = (lax.all_gather(x, gathered, tiled=True) if gathered else x for x in here)
        tile = columns.tile(tokens, labels)
        known = jnp.where((labels >= 0) & (labels < settings.vocab), weight[0] if weight else 1.0, jnp.nan)
        counts = jnp.where(labels == IGNORED, 0.0, known)
        sums = sums + columns.sums(tile, counts)
        if not any(wanted):
            return (sums, d_head, d_bias), None
        before = Gradients(zeros(tokens.shape) if wanted.hidden else None, d_head, d_bias)
        d_hidden, d_head, d_bias = columns.gradients(tile, tokens, labels, counts, before)
        if wanted.hidden:
            d_hidden = _sum(d_hidden, settings.replicated)
            d_hidden = lax.psum_scatter(d_hidden, gathered, tiled=True) if gathered else d_hidden
            d_hidden = d_hidden.astype(hidden.dtype)
        return (sums, d_head, d_bias), d_hidden

    d_head = zeros(columns.head.shape) if wanted.head else None
    d_bias = zeros(columns.head.shape[1]) if wanted.bias else None
    sharing = lax.axis_size(gathered) if gathered else 1
    step = min(max(settings.chunk // sharing, 1), len(flat_labels))
    carry, d_hidden = _over_blocks(block, (zeros(3), d_head, d_bias), len(flat_labels), step)
    sums, d_head, d_bias = carry
    sums = _sum(sums, settings.separate)
    if wanted.hidden:
        d_hidden = d_hidden.reshape(hidden.shape)
    if wanted.head:
        d_head = _sum(_exchange(d_head, embed, 0, 1), settings.separate).astype(head.dtype)
    if wanted.bias and bias is not None:
        d_bias = lax.all_gather(d_bias, embed, tiled=True) if embed else d_bias
        d_bias = _sum(d_bias, settings.separate).astype(bias.dtype)
    return sums, Gradients(d_hidden, d_head, d_bias)
