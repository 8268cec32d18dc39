"""A small boxed parameter tree of every kind there is, for the tests of sharding and of optimizers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vlmax.sharding.rules import unboxed

LAYERS, WIDTH, HEADS, HEAD, HIDDEN, VOCAB = 3, 32, 2, 32, 64, 40


def box(shape, *names, dtype=jnp.float32):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, dtype), names)


def boxed():
    """Abstract: a stacked image encoder, a text embedding, a convolution, a projection, a temperature."""
    return {
        "image": {
            "patch": {"kernel": box((48, WIDTH), "patch", "embed")},
            "positions": box((6, WIDTH), "positions", "embed"),
            "blocks": {
                "norm": {"scale": box((LAYERS, WIDTH), "layers", "norm")},
                "query": {
                    "kernel": box((LAYERS, WIDTH, HEADS, HEAD), "layers", "embed", "heads", "head_dim"),
                    "bias": box((LAYERS, HEADS, HEAD), "layers", "heads", "head_dim"),
                },
                "up": {"kernel": box((LAYERS, WIDTH, HIDDEN), "layers", "embed", "mlp")},
            },
            "conv": box((3, 3, 4, 8), "kernel_height", "kernel_width", "conv_in", "conv_out"),
        },
        "image_projection": {"kernel": box((WIDTH, 16), "embed", "projection")},
        "text": {"embedding": box((VOCAB, WIDTH), "vocab", "embed")},
        "log_scale": box(()),
    }


def values(seed=0):
    """Random float32 arrays of those shapes, standard deviation 0.5."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), unboxed(boxed()))
