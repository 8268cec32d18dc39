"""How the loops over tokens are compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

# XLA's CPU library takes 0.1 ms to wake its threads for each sum over a few rows, more than a token's layer computes:
# it shall have the products alone. Training has larger sums, and is faster with XLA's own choice.
ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


class TokenLoop:
    """A loop over tokens, jitted; on CPUs with what is faster there for a few rows at a time.

    Attributes:
      compiled: the jitted function for a platform; compiled programs are found in it again.
    """

    def __init__(self, loop: Callable[..., Any], static: Sequence[str], used_up: str) -> None:
        """Args: the function, which arguments are static, and which one's memory it may take."""
        functools.update_wrapper(self, loop)
        jitted = functools.partial(jax.jit, loop, static_argnames=static, donate_argnames=used_up)
        self._elsewhere, self._on_cpu = jitted(), jitted(compiler_options=ON_CPU)

    @property
    def compiled(self) -> Any:
        """The jitted function of the platform that is used."""
        return self._on_cpu if jax.default_backend() == "cpu" else self._elsewhere

    def __call__(self, *arguments: Any) -> Any:
        """Runs the loop."""
        return self.compiled(*arguments)
