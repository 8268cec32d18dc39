"""BLIP-2's contrastive loss (Li et al. 2023, section 3.2): an image is as similar to a text as the best of its queries.

The square of similarities of a global batch is held, since hard negatives are drawn from it; its rows are spread over
the devices of the batch, and the similarities of single queries, many times as many, are made and dropped in chunks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

Metrics = dict[str, Float[Array, ""]]


def query_similarity(
    image: Float[Array, "B Q E"], text: Float[Array, "C E"], *, chunk: int, axes: tuple[str, ...] = ()
) -> Float[Array, "B C"]:
    """The highest over q of <image[b, q], text[c]>, in float32.

    Args:
      image: unit vectors of an image's queries.
      text: unit vectors of texts; every device gets all of them.
      chunk: texts whose similarities with single queries are in memory at a time.
      axes: mesh axes over which rows are sharded.
    """
    if axes:
        text = lax.with_sharding_constraint(text, PartitionSpec())
    count, step = len(text), min(chunk, len(text))
    padded = jnp.pad(text, ((0, -count % step), (0, 0)))

    @jax.checkpoint
    def block(texts: Float[Array, "chunk E"]) -> Float[Array, "B chunk"]:
        products = jnp.einsum(
            "bqe,ce->bqc", image, texts, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
        )
        return jnp.max(products, axis=1)

    blocks = lax.map(block, padded.reshape(-1, step, text.shape[1]))
    square = jnp.moveaxis(blocks, 0, 1).reshape(len(image), -1)[:, :count]
    return lax.with_sharding_constraint(square, PartitionSpec(axes)) if axes else square


def smoothed_contrastive(
    logits: Float[Array, "B B"], *, label_smoothing: float, group: Int[Array, " B"] | None = None
) -> tuple[Float[Array, ""], Metrics]:
    """Mean of the cross-entropies from images to texts and from texts to images, with smoothed targets.

    Args:
      logits: similarities over the temperature; row i belongs to column i.
      label_smoothing: the share of a target that lies evenly on all entries.
      group: ids of the examples; entries with the same id share the rest of the target (captions of the same image).

    Returns:
      The loss, and without gradient the loss of each direction and how often an entry that belongs is the highest.
    """
    own = jnp.arange(len(logits))
    group = own if group is None else group
    belongs = group[:, None] == group[None, :]
    shared = belongs / jnp.sum(belongs, axis=1)  # symmetric: those that belong together have equally many
    target = (1 - label_smoothing) * shared + label_smoothing / len(logits)

    def direction(axis: int) -> tuple[Array, Array]:
        expected = jnp.sum(target * logits, axis=axis)
        losses = jax.nn.logsumexp(logits, axis=axis) - expected
        best = jnp.max(jnp.where(belongs, logits, -jnp.inf), axis=axis)
        right = best > jnp.max(jnp.where(belongs, -jnp.inf, logits), axis=axis)
        return jnp.mean(losses), jnp.mean(right, dtype=jnp.float32)

    (to_text, right_text), (to_image, right_image) = direction(1), direction(0)
    metrics = {
        "image_to_text_loss": to_text,
        "text_to_image_loss": to_image,
        "image_to_text_top1": right_text,
        "text_to_image_top1": right_image,
    }
    return (to_text + to_image) / 2, lax.stop_gradient(metrics)
