"""The loss and gradient of microbatches that hold very different numbers of tokens are those of the whole batch."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny, tiny_text
from tests.training.test_step import EIGHT, ONE, on_devices
from vlmax.data.texts import IGNORED
from vlmax.sharding.rules import unboxed
from vlmax.training import patterns
from vlmax.training.step import additive, split_batch, whole_batch


def unequal(name: str, rows: int) -> dict[str, np.ndarray]:
    """A batch whose microbatches of eight have from a handful to all of their tokens to learn."""
    batch = tiny_text.batch(name, rows)
    labels = batch["labels"].copy()
    few = (np.arange(rows) % 8 < 4) & (np.arange(rows) % 3 > 0)
    labels[few, 1:] = IGNORED
    return {**batch, "labels": labels}


@pytest.mark.parametrize(
    ("name", "mesh"), [("llama", ONE), ("llama", EIGHT), ("t5", ONE)], ids=["llama", "llama 2 x 2 x 2", "t5"]
)
def test_one_batch_of_64_has_the_gradients_of_eight_of_8(name, mesh):
    batch = unequal(name, 64)
    counts = [int((part != IGNORED).sum()) for part in split_batch(batch["labels"], 8)]
    assert max(counts) > 3 * min(counts) > 0

    def work(run):
        state = run.init()
        placed = jax.device_put(batch, run.batch_sharding)

        @jax.jit
        def both(state, batch):
            parts = (run.experiment.system, state.trainable, state.frozen, state.carried, batch, jax.random.key(0))
            (value, metrics, _, whole), (other, others, _, micro) = whole_batch(*parts), additive(*parts, 8)
            return (value, metrics, whole), (other, others, micro)

        return tiny.copied(both(state, placed))

    experiment = tiny_text.experiment(name, microbatches=8)
    (value, metrics, whole), (other, others, micro) = on_devices(experiment, mesh, work)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    assert metrics.keys() == others.keys() and int(others["tokens"]) == sum(counts)
    for name, metric in metrics.items():
        np.testing.assert_allclose(others[name], metric, rtol=1e-5, err_msg=name)
    for path, gradient in patterns.flatten(whole).items():
        difference = np.abs(patterns.flatten(micro)[path] - gradient).max()
        assert difference <= 1e-5 * np.abs(gradient).max(), (path, difference)


def test_a_mean_of_means_would_be_another_loss():
    system = tiny_text.system("llama")
    batch = unequal("llama", 64)
    params, _ = jax.jit(system.init)(jax.random.key(0), batch)
    params = unboxed(params)
    # A weight that favours one token makes losses differ between microbatches.
    params["vocabulary"]["output"] = params["vocabulary"]["output"].at[:, 2].add(1.0)
    loss = jax.jit(lambda b: system.loss(params, {}, b, jax.random.key(0))[0])
    parts = split_batch(batch, 8)
    means = [float(loss({name: x[i] for name, x in parts.items()})) for i in range(8)]
    assert abs(np.mean(means) - float(loss(batch))) > 1e-3


def test_training_in_microbatches_takes_the_same_steps():
    def train(run):
        state, losses = run.init(), []
        batch = jax.device_put(unequal("llama", 64), run.batch_sharding)
        for _ in range(6):
            state, metrics = run.step(state, batch)
            losses.append(float(metrics["loss"]))
        return losses

    base = tiny_text.experiment("llama")
    whole, micro = (on_devices(dataclasses.replace(base, microbatches=n), EIGHT, train) for n in (1, 8))
    np.testing.assert_allclose(micro, whole, rtol=1e-4)
    assert whole[-1] < whole[0] - 0.1
