"""Both ResNets beside their reference implementations: outputs, statistics and every gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.torch_imports import open_clip

try:
    open_clip()
except ModuleNotFoundError:
    pytest.skip("open_clip is not installed: requirements-parity.txt", allow_module_level=True)

from tests.models.test_resnet import CONFIGS, DEPTHS, HEADS, close, train_step
from tests.parity import make_golden_resnet as reference
from tests.parity.resnet_names import from_open_clip, from_transformers


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_statistics_and_every_gradient(name):
    model, state, images, probe = reference.case(name, seed=7)
    want = reference.reference(model, images, probe)

    def convert(state):
        return from_transformers(state, DEPTHS) if name == "resnet" else from_open_clip(state, DEPTHS, HEADS)

    module, variables = CONFIGS[name].build(), jax.tree.map(jnp.asarray, convert(state))
    output = jax.jit(lambda v, x: module.apply(v, x, True))(variables, images)
    close(output.tokens, want["eval/tokens"])
    close(output.pooled, want["eval/pooled"])
    trained = jax.jit(lambda v, x, p: train_step(module, v, x, p))(variables, images, probe)
    (_, (tokens, pooled, stats)), (gradients, image_gradient) = trained
    close(tokens, want["train/tokens"])
    close(pooled, want["train/pooled"])
    after = {k.removeprefix("after/"): v for k, v in want.items() if k.startswith("after/")}
    jax.tree.map(close, stats, convert({**state, **after})["batch_stats"])
    torch_gradients = {k.removeprefix("gradient/"): v for k, v in want.items() if k.startswith("gradient/")}
    want_gradients = convert({**state, **torch_gradients})["params"]
    largest = max(np.abs(x).max() for x in jax.tree.leaves(want_gradients))
    for got, right in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        assert np.abs(got - right).max() <= 1e-3 * np.abs(right).max() + 1e-5 * largest
    close(image_gradient, want["gradient/images"], 1e-3)
