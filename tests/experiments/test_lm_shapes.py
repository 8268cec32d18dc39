"""The tiny language models on the text of the shapes world: sizes that fit, rows that are full."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests.shared import REPOSITORY
from vlmax.command_line import load_experiment
from vlmax.data.pipeline import host_batches
from vlmax.data.texts import IGNORED
from vlmax.training.evaluations import check_needs
from vlmax.training.loop import train
from vlmax.training.schedules import Constant
from vlmax.training.setup import check_features

FILE = REPOSITORY / "experiments" / "lm_shapes.py"
every = pytest.mark.parametrize("variant", ["llama", "opt", "t5"])


@every
def test_it_is_ready_to_run(variant):
    experiment = load_experiment(f"{FILE}:{variant}")
    check_features(experiment)
    check_needs(experiment)
    batch = {name: jnp.zeros((1, *x.shape), x.dtype) for name, x in experiment.system.inputs().items()}
    boxed, _ = jax.eval_shape(experiment.system.init, jax.random.key(0), batch)
    experiment.optimizer.build(boxed, experiment.steps)


@every
def test_rows_are_nearly_full_and_little_is_left_out(variant):
    data = load_experiment(f"{FILE}:{variant}").data
    batch = host_batches(data, range(data.batch_size), seed=0)[3]
    filled = (batch.arrays["labels"] != IGNORED).mean()
    # Pairs fill two streams, each of which ends the row: 12 % left out for 74 %, 20 % for 80 %.
    assert filled > (0.7 if variant == "t5" else 0.85)
    assert batch.info.counts["left_out"] < 0.15 * len(batch.info.keys)
    assert batch.info.counts["truncated"] == 0


@pytest.mark.slow
@every
def test_a_few_steps_teach_it_something(variant, tmp_path):
    experiment = load_experiment(f"{FILE}:{variant}")
    short = tuple(dataclasses.replace(e, limit=64) for e in experiment.evaluations)
    optimizer = dataclasses.replace(experiment.optimizer, schedule=Constant(peak=2e-3, warmup_steps=5))
    experiment = dataclasses.replace(experiment, steps=40, optimizer=optimizer, evaluations=short)
    scores = train(experiment, tmp_path / "run")
    assert 1 < scores["eval/text/perplexity"] < 60 < experiment.system.text.decoder.vocab
    assert scores["eval/answers/examples"] == scores["eval/unseen/examples"] == 64
