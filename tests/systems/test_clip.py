"""CLIP as the trainer, the evaluations and the planner see it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.shared import shared
from vlmax.errors import InputError
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.encoders.vit import ViT
from vlmax.sharding.rules import unboxed
from vlmax.systems.clip import CLIP, OPENAI_MEAN, OPENAI_STD, Sigmoid, Softmax, unit
from vlmax.systems.system import System, TwoPass
from vlmax.training import patterns

BATCH = 16
EMBED = 256  # so many that random directions are nearly orthogonal


@pytest.fixture(scope="module")
def fresh():
    """Sigmoid CLIP, its parameters and carried state, and a batch's features and loss."""
    system = tiny.clip(objective=Sigmoid(), embed=EMBED)
    params, carried = jax.jit(system.init)(jax.random.key(0), tiny.batch(BATCH))
    params = unboxed(params)
    features, _ = jax.jit(system.encode)(params, carried, tiny.batch(BATCH), jax.random.key(1))
    return system, params, carried, features


def test_it_is_a_system_whose_loss_can_be_taken_apart():
    assert isinstance(tiny.clip(), System) and isinstance(tiny.clip(), TwoPass)


# Expected loss.


@pytest.mark.parametrize("objective", [Softmax(), Sigmoid()], ids=["softmax", "sigmoid"])
def test_the_expected_loss_at_the_start_is_near_the_real_one(fresh, objective):
    _, _, _, features = fresh
    system = tiny.clip(objective=objective)
    scalars = {name: jnp.float32(value) for name, value in objective.init().items()}
    loss, metrics = system.objective_of({"objective": scalars}, features, {})
    assert float(loss) == pytest.approx(system.expected_initial_loss(BATCH), rel=0.2)
    assert float(metrics["scale"]) == pytest.approx(1 / 0.07 if objective == Softmax() else 10)
    assert ("bias" in metrics) == (objective == Sigmoid())


def test_the_loss_is_the_objective_of_the_features(fresh):
    system, params, carried, features = fresh
    loss, (metrics, after) = jax.jit(system.loss)(params, carried, tiny.batch(BATCH), jax.random.key(1))
    expected, others = system.objective_of(params, features, {})
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert metrics.keys() == others.keys() and after == carried == {}


def test_the_expected_losses_are_those_of_similarities_that_tell_nothing():
    rows = jnp.eye(2 * BATCH)  # no image is like any text
    image, text = rows[:BATCH], rows[BATCH:]
    for objective in (Softmax(), Sigmoid(), Sigmoid(bias=-4.0)):
        scalars = {name: jnp.float32(value) for name, value in objective.init().items()}
        loss, _ = objective(image, text, scalars, None)
        assert float(loss) == pytest.approx(objective.expected_initial_loss(BATCH), rel=1e-5)


@pytest.mark.parametrize("objective", [Softmax(), Sigmoid()], ids=["softmax", "sigmoid"])
def test_pairs_of_one_group_are_no_negatives_of_each_other(objective):
    image, text = (unit(jax.random.normal(jax.random.key(i), (BATCH, 8))) for i in (1, 2))
    scalars = {name: jnp.float32(value) for name, value in objective.init().items()}
    system = tiny.clip(objective=objective)

    def loss(text, group):
        batch = {} if group is None else {"group": group}
        return system.objective_of({"objective": scalars}, {"image": image, "text": text}, batch)[0]

    group = jnp.arange(BATCH).at[1].set(0)  # the first two belong together
    with_group, without = float(loss(text, group)), float(loss(text, None))
    assert with_group < without  # a negative less
    assert float(loss(text, jnp.arange(BATCH))) == pytest.approx(without, rel=1e-6)
    one = jnp.zeros(BATCH, jnp.int32)
    gradient = jax.grad(loss)(text, one)
    alone = jax.vmap(jax.grad(lambda t, i: system.objective_of(
        {"objective": scalars}, {"image": i[None], "text": t[None]}, {})[0]))(text, image)  # fmt: skip
    np.testing.assert_allclose(gradient, alone / BATCH, atol=1e-6)  # all one group: no negatives at all


# Pixels.


def test_pixels_are_normalised_on_the_device(fresh):
    system, params, carried, _ = fresh
    image = tiny.batch(4)["image"]
    pixels = (image / 255 - np.asarray(OPENAI_MEAN)) / np.asarray(OPENAI_STD)
    encoder = system.image.build(jnp.float32)
    pooled = encoder.apply({"params": params["image"]}, jnp.asarray(pixels, jnp.float32), deterministic=True).pooled
    expected = unit(pooled @ params["image_projection"]["kernel"])
    found = jax.jit(system.image_features)(params, carried, image)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = dataclasses.replace(system, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert np.abs(other.image_features(params, carried, image) - expected).max() > 1e-3


def test_features_are_unit_vectors_and_a_zero_row_has_a_gradient(fresh):
    system, params, carried, _ = fresh
    batch = tiny.batch(BATCH)
    image = jax.jit(system.image_features)(params, carried, batch["image"])
    text = jax.jit(system.text_features)(params, carried, batch["text"])
    assert image.shape == text.shape == (BATCH, EMBED) and image.dtype == text.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(image, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(text, axis=1), 1, rtol=1e-5)
    assert bool(jnp.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((1, 3)))).all())


# Parts.


@pytest.mark.parametrize(
    "system",
    [tiny.clip(), tiny.clip(objective=Sigmoid()), tiny.resnet_clip(), tiny.clip(lock_image=True)],
    ids=["softmax", "sigmoid", "resnet", "LiT"],
)
def test_the_parts_cover_every_parameter_once(system):
    example = {name: jnp.zeros((1, *x.shape), x.dtype) for name, x in system.inputs().items()}
    boxed, _ = jax.eval_shape(system.init, jax.random.key(0), example)
    for path in patterns.flatten(boxed):
        found = [part for part, pattern in system.parts().items() if re.fullmatch(pattern, path)]
        assert len(found) == 1, (path, found)
    for part, pattern in system.parts().items():
        assert patterns.hits(pattern, patterns.flatten(boxed), part)
    assert set(system.flops_per_example()) <= set(system.parts())


def test_lit_gives_the_image_encoder_no_gradient(fresh):
    _, params, carried, _ = fresh
    system = tiny.clip(objective=Sigmoid(), embed=EMBED, lock_image=True)
    assert system.locked() == ("image/.*",) and tiny.clip().locked() == ()
    gradient = jax.jit(jax.grad(lambda *a: system.loss(*a)[0]))(params, carried, tiny.batch(4), jax.random.key(0))
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradient["image"]))
    for trained in ("text", "image_projection", "text_projection"):
        assert any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient[trained]))


@pytest.mark.parametrize("lock", [False, True], ids=["trained", "locked"])
def test_only_a_trained_resnet_moves_its_statistics(lock):
    system, batch, rng = tiny.resnet_clip(lock_image=lock), tiny.batch(4, image=32), jax.random.key(0)
    params, carried = map(unboxed, jax.eval_shape(system.init, rng, batch))
    traced = jax.make_jaxpr(lambda carried, params: system.encode(params, carried, batch, rng)[1])(carried, params)
    given = traced.jaxpr.invars[: len(jax.tree.leaves(carried))]
    same = [after is before for after, before in zip(traced.jaxpr.outvars, given, strict=True)]
    assert same and (all(same) if lock else not any(same))


# FLOPs.


@pytest.mark.parametrize("name", ["clip-tiny", "clip-emoji", "clip-vit-b32", "clip-vit-b16"])
def test_flops_are_those_of_the_benchmarks(name):
    spec = importlib.util.spec_from_file_location("bench_flops", shared("bench", "flops.py"))
    flops = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flops)
    work = json.loads(shared("bench", "workloads.json").read_text())[name]

    def sizes(part):
        return {"width": part["width"], "depth": part["depth"], "heads": part["heads"], "mlp": part["ffn"]}

    vision, text = work["vision"], work["text"]
    system = CLIP(
        image=ViT(image=vision["image"], patch=vision["patch"], **sizes(vision)),
        text=TextEncoder(context=text["context"], vocab=text["vocab"], **sizes(text)),
        embed=work["embed"],
    )
    batch = 64
    similarities = 2 * batch * work["embed"] * batch  # which the system leaves out
    assert sum(system.flops_per_example().values()) * batch + similarities == flops.clip_forward(work, batch)


# Errors.


@pytest.mark.parametrize("side", ["image", "text"])
def test_an_encoder_of_another_width_needs_a_projection(side):
    with pytest.raises(InputError, match=rf"system.{side}: its output is 16 wide and system.embed is 8; .*projection"):
        tiny.clip(**{f"{side}_projection": False})
    system = tiny.clip(**{f"{side}_projection": False}, embed=16)
    assert system.flops_per_example()["projections"] == 2 * 16 * 16


def test_an_unknown_dtype_is_an_error():
    with pytest.raises(InputError, match=r"system.dtype is 'float16'; it must be float32 or bfloat16"):
        tiny.clip(dtype="float16")


def test_a_tokenizer_must_fit_the_embedding_and_the_pooling():
    system = tiny.clip()
    system.check_tokenizer(tiny.TinyTokenizer())
    with pytest.raises(
        InputError, match=r"33 ids and the text encoder embeds 32; set system.text.vocab to at least 33"
    ):
        system.check_tokenizer(tiny.TinyTokenizer(vocab_size=33, eos=32))
    with pytest.raises(InputError, match=r"end mark must have the highest id.*is 2 of 32: set system.text.pool"):
        system.check_tokenizer(tiny.TinyTokenizer(eos=2))
    tiny.clip(text=tiny.text(pool="last")).check_tokenizer(tiny.TinyTokenizer(eos=2))
