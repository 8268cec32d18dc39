"""Kernels of a frozen base stored in 8 or 4 bits: QLoRA (Dettmers et al. 2023, arXiv 2305.14314, section 3).

In the place of `kernel` [layers, *inputs, *outputs] stand `kernel/values`, integers of the same shape, and
`kernel/scale`, the largest magnitude of each block of inputs over that of the integers. `Dense` makes a kernel of
them, in its own dtype and a layer at a time, and lets it go. The numbers are those of the library qwix.

    params = Quantized((r"decoder/.*",), bits=4).store(params, projections)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.meta import is_axis_metadata

from vlmax.errors import InputError
from vlmax.models.projections import Params, Projection, changed, chosen


@dataclasses.dataclass(frozen=True)
class Quantized:
    """Which kernels are stored in few bits.

    Raises:
      InputError: no pattern, or a block below 1.
    """

    patterns: tuple[str, ...]
    """Regular expressions for whole paths of projections, as `decoder/.*/(query|value)`; each must hit."""
    bits: Literal[8, 4] = 4
    """8 errs by 0.6 % of the mean magnitude of normally distributed weights, 4 by 11 %, in blocks of 64."""
    block: int = 64
    """Values of the last input dimension that share a scale (all, where it is shorter); it must divide that."""

    def __post_init__(self):
        if not self.patterns or self.block < 1 or self.bits not in (8, 4):
            raise InputError(
                f"quantized: patterns are {self.patterns}, block is {self.block} and bits {self.bits}; name a "
                "projection, set block to 1 or more, bits to 8 or 4"
            )

    def store(self, params: Params, projections: Mapping[str, Projection]) -> dict[str, Any]:
        """The parameters with the chosen kernels in few bits, sharded as before. Under jit no more is copied.

        Raises:
          InputError: a pattern hits no projection, or a kernel is quantised already or does not divide into blocks.
        """
        result = dict(params)
        for path in chosen(self.patterns, projections, "quantized.patterns"):

            def quantize(node: Params, path: str = path) -> Params:
                return {**node, "kernel": self._quantize(node["kernel"], projections[path], path)}

            result = changed(result, path, quantize)
        return result

    def _quantize(self, kernel: Any, projection: Projection, path: str) -> dict[str, Any]:
        import qwix

        if isinstance(kernel, Mapping):
            raise InputError(f"quantizing {path}: its kernel is stored in few bits already; leave it out of `patterns`")
        boxed = is_axis_metadata(kernel)
        value = kernel.value if boxed else kernel
        axis = value.ndim - projection.outputs - 1
        size = value.shape[axis]
        block = min(self.block, size)
        if size % block:
            raise InputError(
                f"quantizing {path}: blocks of quantized.block {block} do not divide its inputs, {size} of the kernel "
                f"{list(value.shape)}; take a divisor of {size}"
            )
        stored = qwix.quantize(
            value.astype(jnp.float32),
            jnp.int8 if self.bits == 8 else jnp.int4,
            channelwise_axes=[i for i in range(value.ndim) if i != axis],
            tiled_axes={axis: block},
        )
        scale: jax.Array = stored.scale
        if not boxed:
            return {"values": stored.qvalue, "scale": scale}
        # Blocks lie as the inputs do, or whole on every device where there is only one.
        names = tuple(None if i == axis and scale.shape[i] == 1 else name for i, name in enumerate(kernel.names))
        return {
            "values": nn.LogicallyPartitioned(stored.qvalue, kernel.names),
            "scale": nn.LogicallyPartitioned(scale, names),
        }
