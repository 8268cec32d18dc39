"""vlmax: encoder -> connector -> decoder. Vision-language models in JAX, trained on TPU pods."""

__version__ = "0.1.0"
