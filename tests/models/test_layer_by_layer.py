"""A stack whose layers lie apart gives what the loop over them gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_transformer import FAMILIES, apply, parameters
from vlmax.models.layers.layer_by_layer import layer_by_layer


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer_equals_the_scan(family):
    config, params = FAMILIES[family], parameters(FAMILIES[family])
    apart = layer_by_layer(params)
    assert set(apart["params"]) == {f"layers_{i}" for i in range(config.depth)}
    for ours, theirs in zip(apply(config, apart, hidden=True), apply(config, params, hidden=True), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert apply(config, apart)[1] is None


def test_every_stack_of_a_model_is_taken_apart_and_nothing_else():
    kernel = np.arange(6).reshape(2, 3)
    params = {"image": {"layers": {"a": {"kernel": kernel}}}, "text": {"layers": {"b": kernel}, "norm": kernel}}
    apart = layer_by_layer(params)
    assert list(apart["image"]) == ["layers_0", "layers_1"]
    np.testing.assert_array_equal(apart["image"]["layers_1"]["a"]["kernel"], [3, 4, 5])
    np.testing.assert_array_equal(apart["text"]["layers_0"]["b"], [0, 1, 2])
    assert apart["text"]["norm"] is kernel


def test_stacked_parameters_are_freed_one_by_one(monkeypatch):
    """When one is taken apart, those before it are gone; what is not stacked stays."""
    stacks = [jnp.full((2, 3), value) for value in range(3)]
    params = {"layers": dict(zip("abc", stacks, strict=True)), "norm": jnp.ones(3)}
    alive = []
    take = type(stacks[0]).__getitem__

    def noted(self, key):
        alive.append([x.is_deleted() for x in stacks].count(False))
        return take(self, key)

    monkeypatch.setattr(type(stacks[0]), "__getitem__", noted)
    apart = layer_by_layer(params, free=True)
    monkeypatch.undo()
    assert alive == [3, 3, 2, 2, 1, 1] and all(x.is_deleted() for x in stacks)
    assert apart["norm"] is params["norm"] and jax.tree.map(lambda x: x.tolist(), apart["layers_1"])["c"] == [2.0] * 3
    kept = {"layers": jnp.ones((2, 3))}
    layer_by_layer(kept)
    assert not kept["layers"].is_deleted()
