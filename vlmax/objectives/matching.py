"""Image-text matching: is this the picture of that text? (ALBEF, Li et al. 2021, section 3.2; BLIP; BLIP-2.)

The pairs of a batch are positives. Each text also gets an image, and each image a text, that it resembles and does not
belong to: hard negatives, drawn out of the whole global batch with the softmax of their similarities.

`take_rows` brings what was drawn to the device that asks for it. The image tokens of a global batch would fill a device
many times over, so they travel round a ring of devices, and each keeps the rows that it drew.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

Metrics = dict[str, Float[Array, ""]]


class Negatives(NamedTuple):
    """What was drawn for every row.

    Attributes:
      index: a column that does not belong to the row; the row's own number where there is none.
      exists: whether there is one.
    """

    index: Int[Array, " B"]
    exists: Bool[Array, " B"]


def draw_negatives(rng: PRNGKeyArray, logits: Float[Array, "B B"], group: Int[Array, " B"] | None = None) -> Negatives:
    """Draws a negative for every row, with the softmax of its logits over the columns that do not belong to it.

    In float32 and without a softmax that could underflow. The noise of a row is its own, wherever the row lies: what is
    drawn does not depend on the mesh. No gradient.

    Args:
      rng: of this draw.
      logits: row i against column j; row i belongs to column i.
      group: ids of the examples; columns with the row's own id belong to it too (captions of the same image).
    """
    size = len(logits)
    own = jnp.arange(size)
    group = own if group is None else group
    belongs = (group[:, None] == group[None, :]) | (own[:, None] == own[None, :])
    weights = jnp.where(belongs, -jnp.inf, lax.stop_gradient(logits).astype(jnp.float32))
    exists = ~jnp.all(belongs, axis=1)
    return Negatives(jnp.where(exists, jax.random.categorical(rng, weights, axis=1), own), exists)


def take_rows(
    x: Shaped[Array, "B *rest"], index: Int[Array, " B"], *, axes: tuple[str, ...] = ()
) -> Shaped[Array, "B *rest"]:
    """`x[index]`, with a gradient, where both are sharded over `axes` of the mesh in context by their first dimension.

    A device holds its own rows, those on their way round the ring, and those it asked for.
    """
    if not axes:
        return jnp.take(x, index, axis=0)

    def on_device(block, index):
        size, count, me = len(block), lax.axis_size(axes), lax.axis_index(axes)
        around = [((i + 1) % count, i) for i in range(count)]

        def turn(carry, step):
            block, found = carry
            place = index - (me + step) % count * size
            here = (place >= 0) & (place < size)
            rows = jnp.take(block, jnp.clip(place, 0, size - 1), axis=0)
            found = jnp.where(here.reshape(-1, *[1] * (block.ndim - 1)), rows, found)
            return (lax.ppermute(block, axes, around), found), None

        (_, found), _ = lax.scan(turn, (block, jnp.zeros_like(block)), jnp.arange(count))
        return found

    rows = PartitionSpec(axes)
    ring = jax.shard_map(on_device, in_specs=(rows, rows), out_specs=rows, axis_names={*axes}, check_vma=False)
    return ring(x, index)


def matching_loss(
    logits: Float[Array, "B 3 2"], image_exists: Bool[Array, " B"], text_exists: Bool[Array, " B"]
) -> tuple[Float[Array, ""], Metrics]:
    """Cross-entropy over the pairs of the global batch, and how many of them are told right.

    Args:
      logits: of no match and match, in this order: of every pair; of its text with an image drawn for it; and of its
        image with a text drawn for it.
      image_exists: whether there was such an image; the pair does not count where there was not.
      text_exists: whether there was such a text.
    """
    logits = logits.astype(jnp.float32)
    counts = jnp.stack([jnp.ones_like(image_exists), image_exists, text_exists], axis=1)
    right = jnp.asarray([1, 0, 0])
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, right[None, :, None], axis=-1)[..., 0]
    told = (jnp.argmax(logits, axis=-1) == right) & counts
    total = jnp.sum(counts)
    metrics = {
        "matching_accuracy": jnp.sum(told) / total,
        "matching_positives": jnp.mean(told[:, 0], dtype=jnp.float32),
    }
    return jnp.sum(jnp.where(counts, losses, 0)) / total, metrics
