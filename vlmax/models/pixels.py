"""From the bytes of images to what image encoders read."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from vlmax.models.layers.axes import constrain

Colour = tuple[float, float, float]

OPENAI_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Colour = (0.26862954, 0.26130258, 0.27577711)


def normalised(image: UInt8[Array, "B h w 3"], mean: Colour, std: Colour, dtype: DTypeLike) -> Float[Array, "B h w 3"]:
    """(x / 255 - mean) / std by colour, as one multiply-add in float32, then in `dtype`."""
    scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32)
    shift = jnp.asarray([-m / s for m, s in zip(mean, std, strict=True)], jnp.float32)
    return constrain((image.astype(jnp.float32) * scale + shift).astype(dtype), "batch", "height", "width", "channels")
