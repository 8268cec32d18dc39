"""How large a model is, without making it."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np


def count(config) -> int:
    """Parameters."""
    shapes = nn.unbox(jax.eval_shape(config.build().init, jax.random.key(0), np.zeros((1, 2), np.int32)))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
