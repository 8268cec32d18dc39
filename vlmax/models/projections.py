"""The projections of a module: its `Dense` layers by path, as a basis for what is done to their kernels alone.

with noted() as projections:
    params = module.init(rng, tokens)["params"]
params = LoRA(...).add(rng, params, projections)
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from vlmax.errors import InputError, nearest
from vlmax.models.layers.dense import Dense

Params = Mapping[str, Any]


class Projection(NamedTuple):
    """How many dimensions of a projection's kernel, after those of the stack, are inputs and outputs."""

    inputs: int
    outputs: int


@contextlib.contextmanager
def noted() -> Iterator[dict[str, Projection]]:
    """Inside, every `Dense` layer that is called is noted by its path; tracing (`jax.eval_shape`) is enough."""
    found: dict[str, Projection] = {}

    def interceptor(call, args, kwargs, context):
        module = context.module
        if isinstance(module, Dense) and context.method_name == "__call__":
            found["/".join(module.path)] = Projection(len(module.in_axes), len(module.features))
        return call(*args, **kwargs)

    with nn.intercept_methods(interceptor):
        yield found


def chosen(patterns: Sequence[str], projections: Mapping[str, Projection], field: str) -> list[str]:
    """The paths that any of the regular expressions matches whole, in order.

    Raises:
      InputError: one is no regular expression, or matches no projection.
    """
    hit: set[str] = set()
    for i, pattern in enumerate(patterns):
        try:
            found = [path for path in projections if re.fullmatch(pattern, path)]
        except re.error as error:
            raise InputError(f"{field}[{i}]: {pattern!r} is not a regular expression: {error}") from error
        if not found:
            raise InputError(
                f"{field}[{i}]: {pattern!r} matches the whole path of no projection; {nearest(pattern, projections)}"
            )
        hit.update(found)
    return sorted(hit)


def changed(params: Params, path: str, change: Callable[[Params], Params]) -> dict[str, Any]:
    """The nested dict with what `change` makes of the dict at the path."""
    name, _, rest = path.partition("/")
    return {**params, name: changed(params[name], rest, change) if rest else dict(change(params[name]))}
