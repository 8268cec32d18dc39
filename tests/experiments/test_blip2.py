"""BLIP-2's experiments: sizes against the published ones, stages that fit each other, tiny ones ready to run."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import pytest

from tests.shared import REPOSITORY
from vlmax.command_line import load_experiment
from vlmax.models.connectors.qformer import TEXT_BRANCH
from vlmax.sharding.rules import unboxed
from vlmax.systems.blip2 import BLIP2
from vlmax.training import patterns
from vlmax.training.evaluations import check_needs
from vlmax.training.setup import check_features

FILES = ("stage1", "stage2_opt", "stage2_flant5", "caption_coco", "vqa", "retrieval_coco")


def load(name: str, variant: str):
    return load_experiment(f"{REPOSITORY / 'experiments' / f'blip2_{name}.py'}:{variant}")


def shapes(experiment) -> dict[str, tuple[int, ...]]:
    batch = {name: jnp.zeros((1, *x.shape), x.dtype) for name, x in experiment.system.inputs().items()}
    boxed = jax.eval_shape(experiment.system.init, jax.random.key(0), batch)[0]
    return {path: leaf.shape for path, leaf in patterns.flatten(unboxed(boxed)).items()}


def millions(found: dict[str, tuple[int, ...]], part: str = "") -> float:
    return sum(math.prod(shape) for path, shape in found.items() if path.startswith(part)) / 1e6


def trained(experiment, found: dict[str, tuple[int, ...]]) -> float:
    locked = experiment.system.locked()
    return millions({p: s for p, s in found.items() if not any(re.fullmatch(pattern, p) for pattern in locked)})


def test_the_first_stage_has_the_published_sizes():
    experiment = load("stage1", "vitg")
    found = shapes(experiment)
    assert found["image/transformer/layers/mlp/up/kernel"][0] == 39
    assert 980 < millions(found, "image/") < 990  # EVA's 1.01 billion without the last layer
    assert 185 < trained(experiment, found) < 190  # 188 million (paper, section 3.1)
    assert experiment.system.image.tokens == 257 and experiment.steps == 250_000
    assert load("stage1", "vitl").system.image.depth == 23 and load("stage1", "vitl").data.batch_size == 2320


@pytest.mark.parametrize(
    ("name", "variant", "low", "high"),
    [("stage2_opt", "opt2_7b", 103, 109), ("stage2_opt", "opt6_7b", 103, 109), ("stage2_flant5", "xl", 103, 109)],
)
def test_the_second_stage_trains_as_many_as_published(name, variant, low, high):
    experiment = load(name, variant)
    assert low <= trained(experiment, shapes(experiment)) <= high  # 103 to 108 million (paper, table 2)


@pytest.mark.parametrize("name", ["stage2_opt", "stage2_flant5"])
@pytest.mark.parametrize("tiny", [False, True])
def test_the_second_stage_takes_what_the_first_has(name, tiny):
    first, second = load("stage1", "tiny" if tiny else "vitg"), load(name, "tiny" if tiny else "base")
    assert second.init[0].path.removeprefix("runs/") == first.name
    assert isinstance(first.system, BLIP2) and first.system.image == second.system.image
    former, connector = shapes(first), shapes(second)
    given = {p.removeprefix("qformer/"): s for p, s in former.items() if p.startswith("qformer/")}
    left = patterns.union(TEXT_BRANCH, given, "text")
    wanted = {p.removeprefix("connector/"): s for p, s in connector.items() if p.startswith("connector/")}
    assert {path: shape for path, shape in given.items() if path not in left} == wanted


@pytest.mark.parametrize("name", FILES)
def test_the_tiny_variant_is_ready_to_run(name):
    experiment = load(name, "tiny")
    check_features(experiment)
    check_needs(experiment)
    found = shapes(experiment)
    assert trained(experiment, found) < 5
    full = load(name, "base")
    assert type(experiment.system) is type(full.system)
    assert type(experiment.data.preprocess) is type(full.data.preprocess)
    assert experiment.system.locked() == full.system.locked()


@pytest.mark.parametrize("name", ["caption_coco", "vqa", "retrieval_coco"])
def test_layer_decay_of_the_encoder_is_in_the_optimizer(name):
    experiment = load(name, "opt6_7b" if name == "caption_coco" else "base")
    batch = {n: jnp.zeros((1, *x.shape), x.dtype) for n, x in experiment.system.inputs().items()}
    boxed = jax.eval_shape(experiment.system.init, jax.random.key(0), batch)[0]
    built = experiment.optimizer.build(boxed, experiment.steps, experiment.system.locked())
    rates = built.groups["image/transformer/layers/mlp/up/kernel"].multiplier.reshape(-1)
    assert rates[-1] == pytest.approx(0.95) and rates[0] == pytest.approx(0.95**39, rel=1e-4)
    assert built.groups["image/class_token"].multiplier == pytest.approx(0.95**40, rel=1e-4)
