"""What is checked before anything is compiled, and what is ready afterwards."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from tests import tiny
from vlmax.errors import InputError
from vlmax.sharding.mesh import Mesh
from vlmax.training import patterns
from vlmax.training.groups import LayerDecay
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Constant, Cosine
from vlmax.training.setup import Run, device_context, prepare


def ready(experiment) -> Run:
    """The experiment, prepared on the eight devices."""
    with device_context(experiment) as mesh:
        return prepare(experiment, mesh)


def optimizer(**changes) -> Optimizer:
    return dataclasses.replace(Optimizer(AdamW(), Constant(peak=1e-3)), **changes)


WRONG = {
    "mesh too large": (
        tiny.experiment(mesh=Mesh(data=3)),
        ["data=3", "does not multiply to the number of devices, 8", "mesh.data=8"],
    ),
    "mesh of two free axes": (tiny.experiment(mesh=Mesh(data=-1, fsdp=-1)), ["mesh.data and mesh.fsdp are -1"]),
    "batch over the mesh": (
        tiny.with_data(tiny.experiment(), batch_size=30),
        ["data.batch_size 30", "mesh axes data=8", "the nearest that does is 32"],
    ),
    "microbatch over the mesh": (
        dataclasses.replace(tiny.with_data(tiny.experiment(), batch_size=120), microbatches=6),
        ["data.batch_size 120 in 6 microbatches over 8 devices", "the nearest batch size that does is 96"],
    ),
    "parameter over the mesh": (
        tiny.experiment(system=tiny.clip(text=tiny.text(vocab=33)), mesh=Mesh(tensor=2)),
        ["text/token_embedding", "is 33 and does not divide by mesh.tensor=2", "nearest size that does is 3"],
    ),
    "rule with an unknown mesh axis": (
        tiny.experiment(rules=(("mlp", ("tensors",)),)),
        ["rules[0]", "'tensors'", "did you mean 'tensor'?"],
    ),
    "rule that hits nothing": (tiny.experiment(rules=(("mpl", ("tensor",)),)), ["'mpl' hits no parameter", "'mlp'"]),
    "frozen pattern that hits nothing": (
        tiny.experiment(optimizer=optimizer(frozen=("image/patch/.*",))),
        ["optimizer.frozen[0]", "'image/patch/.*' hits no parameter"],
    ),
    "learning rate of nothing": (
        tiny.experiment(optimizer=optimizer(lr_multipliers=(("txt/.*", 0.1),))),
        ["optimizer.lr_multipliers[0]", "'txt/.*' hits no parameter"],
    ),
    "layer decay of nothing": (
        tiny.experiment(optimizer=optimizer(layer_decay=(LayerDecay("images/.*", "image/positions.*", 0.8),))),
        ["optimizer.layer_decay[0].blocks", "hits no parameter"],
    ),
    "everything frozen": (tiny.experiment(optimizer=optimizer(frozen=(".*",))), ["nothing would train"]),
    "warm-up longer than the run": (
        tiny.experiment(optimizer=optimizer(schedule=Cosine(peak=1e-3, warmup_steps=50))),
        ["warmup_steps", "50", "10"],
    ),
    "tokenizer larger than the embedding": (
        tiny.with_data(
            tiny.experiment(), preprocess=tiny.TinyFeatures(opened=tiny.TinyTokenizer(vocab_size=99, eos=98))
        ),
        ["99 ids and the text encoder embeds 32", "system.text.vocab"],
    ),
    "pictures of another size": (
        tiny.with_data(tiny.experiment(), preprocess=tiny.TinyFeatures(image=16)),
        ["feature 'image'", "reads uint8 [8, 8, 3]", "gives uint8 [16, 16, 3]"],
    ),
    "texts of another length": (
        tiny.with_data(tiny.experiment(), preprocess=tiny.TinyFeatures(length=7)),
        ["feature 'text'", "reads int32 [6]", "gives int32 [7]"],
    ),
    "tokens of another dtype": (
        tiny.with_data(tiny.experiment(), preprocess=tiny.TinyFeatures(dtype="float32")),
        ["feature 'text'", "reads int32 [6]", "gives float32 [6]"],
    ),
    "a feature that is not there": (
        tiny.with_data(tiny.experiment(), preprocess=tiny.TinyFeatures(text="caption")),
        ["reads a feature 'text' that data.preprocess does not give; it gives image, caption"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_run_is_told_before_anything_is_compiled(name):
    experiment, words = WRONG[name]
    with pytest.raises(InputError) as error:
        ready(experiment)
    for word in words:
        assert word in str(error.value)


@pytest.fixture(scope="module")
def run():
    experiment = tiny.experiment(
        mesh=Mesh(data=2, fsdp=2, tensor=2),
        optimizer=optimizer(frozen=("image/.*",)),
        ema_decay=0.9,
        frozen_dtype="bfloat16",
    )
    return ready(experiment)


def test_the_state_is_sharded_as_its_parameters(run):
    shapes = run.abstract_state
    for path, leaf in patterns.flatten(shapes.trainable).items():
        sharding = patterns.flatten(run.param_shardings)[path]
        assert leaf.sharding == sharding, path
        assert patterns.flatten(shapes.ema)[path].sharding == sharding, path
    specs = {path: leaf.sharding.spec for path, leaf in patterns.flatten(shapes.trainable).items()}
    assert specs["text_projection/kernel"] == PartitionSpec("fsdp", None)
    assert any("tensor" in spec for spec in specs.values())
    moments = [leaf for leaf in jax.tree.leaves(shapes.optimizer) if leaf.ndim == 2]
    assert any("fsdp" in leaf.sharding.spec for leaf in moments)


def test_frozen_parameters_are_stored_small_and_have_no_average(run):
    frozen = patterns.flatten(run.abstract_state.frozen)
    assert frozen and all(path.startswith("image/") and leaf.dtype == jnp.bfloat16 for path, leaf in frozen.items())
    assert not any(path.startswith("image/") for path in patterns.flatten(run.abstract_state.ema))
    assert run.frozen_parts == ("image encoder",)
    assert run.passes() == {"image encoder": 1, "text encoder": 3, "projections": 3}


def test_what_is_frozen_behind_what_trains_costs_a_second_forward_pass():
    run = ready(tiny.experiment(optimizer=optimizer(frozen=("image/.*", ".*_projection/.*"))))
    assert run.passes() == {"image encoder": 1, "text encoder": 3, "projections": 2}


def test_the_tables_tell_every_parameter(run):
    text = run.tables_text()
    for word in ("image encoder", "text encoder", "projections", "frozen", "weight decay", "mesh axes", "fsdp"):
        assert word in text
    for path in patterns.flatten(run.boxed):
        assert path in text
