"""How likely each token of a text is, for evaluation: no gradient is asked for, so nothing but a loop is needed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlmax.objectives.language_device import IGNORED


def token_scores(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D rows"],
    labels: Int[Array, "B T"],
    *,
    vocab: int,
    places: int,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Negative log-likelihood of every label in nats, and whether its logit is above all others.

    Both are 0 where the label is -100; any other label outside 0 .. vocab - 1 gives NaN. The logits of `places` places
    of every row are in memory at a time.

    Args:
      hidden: after the final norm.
      head: the output matrix; columns from `vocab` on are padding.
      labels: [b, t] is the token that place t of row b predicts.
      vocab: V.
      places: 1 or more.
    """
    length = labels.shape[1]
    step = min(places, length)
    missing = -length % step
    hidden = jnp.pad(hidden, ((0, 0), (0, missing), (0, 0)))
    padded = jnp.pad(labels, ((0, 0), (0, missing)), constant_values=IGNORED)

    def score(start: Int[Array, ""]) -> tuple[Array, Array]:
        tokens = jax.lax.dynamic_slice_in_dim(hidden, start, step, axis=1)
        wanted = jax.lax.dynamic_slice_in_dim(padded, start, step, axis=1)
        logits = jnp.matmul(tokens, head.astype(tokens.dtype), preferred_element_type=jnp.float32)[..., :vocab]
        valid = wanted != IGNORED
        of_label = jnp.arange(vocab) == wanted[..., None]
        target = jnp.sum(jnp.where(of_label, logits, 0), axis=-1)
        others = jnp.max(jnp.where(of_label, -jnp.inf, logits), axis=-1)
        nll = jnp.where(of_label.any(axis=-1), jax.nn.logsumexp(logits, axis=-1) - target, jnp.nan)
        return jnp.where(valid, nll, 0), valid & (target > others)

    parts = jax.lax.map(score, jnp.arange(0, length + missing, step))
    nll, right = (part.swapaxes(0, 1).reshape(len(labels), -1)[:, :length] for part in parts)
    return nll, right
