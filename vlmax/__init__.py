"""vlmax: encoder -> connector -> decoder. Vision-language models in JAX, trained on TPU pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmax.interop.api import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str):
    """`vlmax.load`, imported when it is asked for, so that what needs no model starts without JAX."""
    if name == "load":
        from vlmax.interop.api import load

        return load
    raise AttributeError(f"module 'vlmax' has no attribute {name!r}")
