"""BLIP's experiments: the papers' numbers fit together, and the tiny variants are ready to run."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.shared import REPOSITORY, shared
from vlmax.command_line import load_experiment
from vlmax.data.pipeline import host_batches
from vlmax.models.encoders.vit import ViT
from vlmax.training.evaluations import check_needs
from vlmax.training.loop import train
from vlmax.training.setup import check_features, device_context

NAMES = ("vitb_pretrain", "caption_coco", "retrieval_coco", "vqa")
FILES = {name: REPOSITORY / "experiments" / f"blip_{name}.py" for name in NAMES}
FULL = [
    *(("vitb_pretrain", v) for v in ("base", "vitl")),
    *(("caption_coco", v) for v in ("base", "vitl")),
    *(("retrieval_coco", v) for v in ("base", "flickr", "vitl")),
    ("vqa", "base"),
]
every = pytest.mark.parametrize("name", FILES)


@pytest.mark.parametrize(("name", "variant"), FULL, ids=[f"{n}:{v}" for n, v in FULL])
def test_sizes_fit_each_other(name, variant, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/bert-base-uncased").symlink_to(shared("data", "tokenizers", "bert-base-uncased"))
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(f"{FILES[name]}:{variant}")
    system, preprocess, batch = experiment.system, experiment.data.preprocess, experiment.data.batch_size
    image = system.model.image
    wanted = (1024, 0.1) if variant == "vitl" else (768, 0.1 if name == "vqa" else 0.0)
    assert isinstance(image, ViT) and (image.width, image.drop_path) == wanted
    assert image.image == preprocess.image.size == experiment.evaluation_image.size
    assert system.length == preprocess.length and system.model.text.dropout == 0.1
    check_needs(experiment)
    if hasattr(system, "alignment"):
        assert system.alignment.queue % batch == 0 and system.alignment.queue == 57_600
        epochs = 2 if name == "vitb_pretrain" else 1
        assert system.alignment.ramp_steps == epochs * experiment.optimizer.schedule.epoch_steps
    assert experiment.steps % experiment.optimizer.schedule.epoch_steps == 0
    rates = experiment.optimizer.schedule.build(experiment.steps)
    assert float(rates(experiment.steps - 1)) < float(rates(5000 if name == "vitb_pretrain" else 0))


@every
def test_the_tiny_variant_is_ready_to_run(name):
    experiment = load_experiment(f"{FILES[name]}:tiny")
    check_features(experiment)
    check_needs(experiment)
    system = experiment.system
    batch = {key: jnp.zeros((1, *x.shape), x.dtype) for key, x in system.inputs().items()}
    boxed, _ = jax.eval_shape(system.init, jax.random.key(0), batch)
    experiment.optimizer.build(boxed, experiment.steps)
    full = load_experiment(f"{FILES[name]}:base").system
    assert type(system) is type(full)
    if hasattr(system, "alignment"):
        assert system.alignment.queue % experiment.data.batch_size == 0
    with device_context(experiment) as mesh:
        for evaluation in experiment.evaluations:
            evaluation.check(mesh)


@every
def test_no_text_of_the_tiny_variant_is_cut_off(name):
    experiment = load_experiment(f"{FILES[name]}:tiny")
    data = experiment.data
    for step in range(3):
        batch = host_batches(data, range(data.batch_size), seed=0)[step]
        assert batch.info.counts.get("truncated", 0) == 0
        assert not batch.info.damaged
    texts = batch.arrays["question" if name == "vqa" else "text"]
    used = (texts != experiment.system.model.pad).sum(axis=1)
    assert used.max() <= texts.shape[1] and np.median(used) > 4


@pytest.mark.slow
@every
def test_a_few_steps_of_the_tiny_variant_teach_it_something(name, tmp_path):
    experiment = load_experiment(f"{FILES[name]}:tiny")
    short = tuple(dataclasses.replace(e, limit=32, batch_size=32) for e in experiment.evaluations)
    data = dataclasses.replace(experiment.data, batch_size=32)
    schedule = dataclasses.replace(experiment.optimizer.schedule, warmup_steps=20)
    optimizer = dataclasses.replace(experiment.optimizer, schedule=schedule)
    # What they begin with, a run of another experiment, is not there.
    experiment = dataclasses.replace(experiment, steps=60, data=data, optimizer=optimizer, evaluations=short, init=())
    scores = train(experiment, tmp_path / "run")
    assert all(math.isfinite(score) for score in scores.values())
    counts = ("images", "texts", "questions", "pairs")
    assert any(score > 0 for key, score in scores.items() if not key.endswith(counts))
