"""The image encoder inside a system: from pixels to tokens, trained or locked."""

from __future__ import annotations

from typing import Any

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from vlmax.models.encoders.dinov2 import DINOv2
from vlmax.models.encoders.resnet import ModifiedResNet, ResNet
from vlmax.models.encoders.vit import ViT
from vlmax.systems.system import Carried, Params

ImageEncoder = ViT | DINOv2 | ResNet | ModifiedResNet


def of_part(part: str, params: Params, carried: Carried) -> dict[str, Any]:
    """The variables of one part of a system, as its module takes them."""
    return {"params": params[part], **{kind: tree[part] for kind, tree in carried.items() if part in tree}}


def encode_image(
    encoder: ImageEncoder,
    params: Params,
    carried: Carried,
    pixels: Float[Array, "B h w 3"],
    *,
    dtype: DTypeLike,
    rng: PRNGKeyArray | None = None,
    locked: bool = True,
) -> tuple[Float[Array, "B N D"], Carried]:
    """The tokens of images, and the carried state after them (batch statistics).

    Args:
      encoder: whose parameters are `params["image"]`.
      params: of the system.
      carried: beside them.
      pixels: normalised.
      dtype: what the encoder computes in.
      rng: of dropout in training; None: as in evaluation.
      locked: the encoder is kept as it is: it runs as in evaluation, and no gradient is computed for it.
    """
    module, variables = encoder.build(dtype), of_part("image", params, carried)
    if rng is None or locked:
        tokens = module.apply(variables, pixels, deterministic=True).tokens
        return (jax.lax.stop_gradient(tokens) if locked else tokens), carried
    kinds = [kind for kind in variables if kind != "params"]
    out, changed = module.apply(variables, pixels, deterministic=False, rngs={"dropout": rng}, mutable=kinds)
    return out.tokens, {**carried, **{kind: {**carried[kind], "image": tree} for kind, tree in changed.items()}}
