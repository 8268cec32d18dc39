"""LoRA (Hu et al. 2021, arXiv 2106.09685): small matrices beside the projections of a frozen model.

An adapter is a subtree `lora` beside a projection's kernel, in the same nested dict of parameters:

    query/kernel           [layers, *inputs, *outputs]     frozen
    query/lora/a           [layers, *inputs, rank]         trains; y = x kernel + alpha / rank (dropout(x) a) b
    query/lora/b           [layers, rank, *outputs]        trains; zeros at first, so that nothing changes
    query/lora/alpha       [layers]                        frozen
    query/lora/dropout     [layers]                        frozen; only where there is dropout

`Dense` applies an adapter wherever its parameters hold one, so no model knows of LoRA, and none can forget it: what the
adapters need at run time travels with them. They are stacked over layers and sharded as their kernels are.

    with noted() as projections:
        params = module.init(rng, tokens)["params"]
    lora = LoRA(patterns=(r".*/attention/(query|value)",), rank=64, alpha=16.0, dropout=0.05)
    params = lora.add(rng, params, projections)   # and train with frozen=(LoRA.BASE,)
    plain = merge(params)                         # for export: one kernel each, no adapter
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.meta import is_axis_metadata
from jaxtyping import Array, Float, PRNGKeyArray

from vlmax.errors import InputError
from vlmax.models.layers.dense import dequantized
from vlmax.models.projections import Params, Projection, changed, chosen

NAME = "lora"


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which projections get an adapter, and its numbers.

    Raises:
      InputError: no pattern, a rank below 1, an alpha that is not above 0, a rate outside [0, 1).
    """

    BASE: ClassVar[str] = r"(?!(?:.*/)?lora/[ab]$).*"
    """Pattern over parameter paths of all that does not train: behind the part's name, `decoder/` + LoRA.BASE."""

    patterns: tuple[str, ...]
    """Regular expressions for whole paths of projections, as `decoder/.*/attention/(query|value)`; each must hit."""
    rank: int = 16
    alpha: float = 32.0
    """The adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Rate on the adapter's input, wherever `apply` gets an rng named `dropout`, as in training."""

    def __post_init__(self):
        if not self.patterns:
            raise InputError("lora.patterns is empty, so no projection would get an adapter; name some")
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise InputError(
                f"lora: rank is {self.rank}, alpha {self.alpha} and dropout {self.dropout}; they must be at least 1, "
                "above 0, and at least 0 and below 1"
            )

    def add(self, rng: PRNGKeyArray, params: Params, projections: Mapping[str, Projection]) -> dict[str, Any]:
        """The parameters with adapters beside the kernels of the chosen `projections` (see projections.py).

        As in PEFT, `a` is uniform between -1/sqrt(inputs) and 1/sqrt(inputs), and `b` zero.

        Raises:
          InputError: a pattern is no regular expression, or it hits no projection.
        """
        result = dict(params)
        paths = chosen(self.patterns, projections, "lora.patterns")
        for path, key in zip(paths, jax.random.split(rng, len(paths)), strict=True):
            change = functools.partial(self._adapter, projection=projections[path], rng=key)
            result = changed(result, path, change)
        return result

    def _adapter(self, node: Params, projection: Projection, rng: PRNGKeyArray) -> Params:
        """A projection's parameters with a fresh adapter, in boxes where its kernel lies in one."""
        kernel = node["kernel"]["values"] if isinstance(node["kernel"], Mapping) else node["kernel"]
        boxed = is_axis_metadata(kernel)
        shape = tuple(kernel.value.shape if boxed else kernel.shape)
        names = tuple(kernel.names) if boxed else (None,) * len(shape)
        stacked, outputs = len(shape) - projection.inputs - projection.outputs, len(shape) - projection.outputs

        def box(value: Array, *names: str | None) -> Any:
            return nn.LogicallyPartitioned(value, names) if boxed else value

        bound = math.prod(shape[stacked:outputs]) ** -0.5
        a = jax.random.uniform(rng, (*shape[:outputs], self.rank), jnp.float32, -bound, bound)
        b = jnp.zeros((*shape[:stacked], self.rank, *shape[outputs:]))
        adapter = {
            "a": box(a, *names[:outputs], None),
            "b": box(b, *names[:stacked], None, *names[outputs:]),
            "alpha": box(jnp.full(shape[:stacked], self.alpha), *names[:stacked]),
        }
        if self.dropout:
            adapter["dropout"] = box(jnp.full(shape[:stacked], self.dropout), *names[:stacked])
        return {**node, NAME: adapter}


def of_adapter(path: str) -> bool:
    """Whether a parameter is an adapter's, by its path."""
    return f"/{NAME}/" in f"/{path}"


def merge(params: Params) -> dict[str, Any]:
    """The parameters with every adapter added to its kernel, in float32 and then in the kernel's dtype, and removed.

    Every kernel in few bits becomes one in float32, with an adapter and without.
    """
    merged = {name: merge(value) if isinstance(value, Mapping) else value
              for name, value in params.items() if name not in (NAME, "kernel")}  # fmt: skip
    if "kernel" not in params:
        return merged
    kernel = params["kernel"]
    kernel = dequantized(kernel, jnp.float32) if isinstance(kernel, Mapping) else kernel
    return merged | {"kernel": _plus(kernel, params[NAME], 1) if NAME in params else kernel}


def unmerge(merged: Params, params: Params) -> dict[str, Any]:
    """The inverse of `merge`: `merged` without the adapters that `params` holds in its kernels, and with them beside.

    Exact to the rounding of the kernel's dtype. What was in few bits stays in float32.
    """
    result = {name: unmerge(value, params[name]) if isinstance(value, Mapping) else value
              for name, value in merged.items()}  # fmt: skip
    if NAME not in params:
        return result
    return result | {"kernel": _plus(merged["kernel"], params[NAME], -1), NAME: params[NAME]}


def delta(
    a: Float[Array, "... inputs rank"], b: Float[Array, "... rank outputs"], alpha: Array, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """What an adapter adds to its kernel of that shape: `alpha / rank a b`, in float32."""
    stacked = a.ndim + b.ndim - 2 - len(shape)
    lead, rank = shape[:stacked], a.shape[-1]
    a, b = a.astype(jnp.float32).reshape(*lead, -1, rank), b.astype(jnp.float32).reshape(*lead, rank, -1)
    product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return (product * (alpha.astype(jnp.float32) / rank)[..., None, None]).reshape(shape)


def _plus(kernel: Array, adapter: Mapping[str, Array], sign: int) -> Array:
    added = delta(adapter["a"], adapter["b"], adapter["alpha"], kernel.shape)
    return (kernel.astype(jnp.float32) + sign * added).astype(kernel.dtype)
