"""The papers' experiments: sizes against the published ones, and what a change must not alter unseen."""

import math

import jax
import jax.numpy as jnp
import pytest

from tests.shared import REPOSITORY
from vlmax.command_line import load_experiment, load_file
from vlmax.data.sources.shapes import Shapes
from vlmax.sharding.rules import unboxed
from vlmax.training.setup import check_features

CLIP = REPOSITORY / "experiments" / "clip_vit_b32.py"
SIGLIP = REPOSITORY / "experiments" / "siglip_vit_b16.py"


def parameters(experiment) -> dict:
    batch = {name: jnp.zeros((1, *x.shape), x.dtype) for name, x in experiment.system.inputs().items()}
    return jax.eval_shape(experiment.system.init, jax.random.key(0), batch)[0]


@pytest.mark.parametrize(
    ("file", "variant", "millions", "gmacs"),
    [  # arch_info.csv of open_clip's scaling study; RN50 and SigLIP: the released weights
        (CLIP, "b32", 151.28, 7.40),
        (CLIP, "b16", 149.62, 20.57),
        (CLIP, "l14", 427.62, 87.73),
        (CLIP, "rn50", 102.01, None),
        (SIGLIP, "base", 203.16, None),
    ],
)
def test_sizes_are_the_published_ones(file, variant, millions, gmacs):
    experiment = load_experiment(f"{file}:{variant}")
    boxed = parameters(experiment)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(unboxed(boxed)))
    assert round(count / 1e6, 2) == millions
    if gmacs is not None:
        assert sum(experiment.system.flops_per_example().values()) / 2e9 == pytest.approx(gmacs, rel=2e-3)
    experiment.optimizer.build(boxed, experiment.steps)
    assert experiment.steps * experiment.data.batch_size == 12_800_000_000
    assert tuple(experiment.system.inputs()["image"].shape) == (*[experiment.data.preprocess.image.size] * 2, 3)
    assert experiment.evaluation_image.size == experiment.data.preprocess.image.size
    assert experiment.data.preprocess.length == experiment.system.text.context


@pytest.mark.parametrize("file", [CLIP, SIGLIP])
def test_the_tiny_variant_is_ready_to_run_on_shapes(file):
    experiment = load_experiment(f"{file}:tiny")
    check_features(experiment)
    experiment.optimizer.build(parameters(experiment), experiment.steps)
    assert isinstance(experiment.data.sources[0].source, Shapes)
    full = load_experiment(f"{file}:base")
    assert type(experiment.system.objective) is type(full.system.objective)
    assert (experiment.system.text.causal, experiment.system.text.pool) == (
        full.system.text.causal,
        full.system.text.pool,
    )
    assert experiment.system.image.pool == full.system.image.pool


@pytest.mark.parametrize("path", sorted((REPOSITORY / "experiments").glob("*.py")), ids=lambda p: p.stem)
def test_names_of_runs_differ(path):
    module = load_file(path)
    found = [module.get_config(variant) for variant in module.VARIANTS]
    names = [one.name for i, one in enumerate(found) if one not in found[:i]]  # base is often another variant
    assert len(set(names)) == len(names)
