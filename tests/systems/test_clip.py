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


@pytest.fixture(scope="module")
def fresh():
    """Sigmoid CLIP with its parameters and the loss of a batch."""
    system = tiny.clip(objective=Sigmoid())
    params, carried = jax.jit(system.init)(jax.random.key(0), tiny.batch(BATCH))
    params = unboxed(params)
    loss, (metrics, _) = jax.jit(system.loss)(params, carried, tiny.batch(BATCH), jax.random.key(1))
    return system, params, carried, float(loss), metrics


def test_it_is_a_system_whose_loss_can_be_taken_apart():
    assert isinstance(tiny.clip(), System) and isinstance(tiny.clip(), TwoPass)


# Expected loss.


def test_the_expected_loss_at_the_start_is_near_the_real_one(fresh):
    system, params, carried, loss, metrics = fresh
    assert loss == pytest.approx(system.expected_initial_loss(BATCH), rel=0.1)
    assert float(metrics["scale"]) == pytest.approx(10) and float(metrics["bias"]) == pytest.approx(-10)
    softmax = tiny.clip()
    scalars = {"objective": {"log_scale": jnp.float32(softmax.objective.init()["log_scale"])}}
    features, _ = system.encode(params, carried, tiny.batch(BATCH), jax.random.key(1))
    # Fresh towers give every text nearly the same features, so that every text fits as well as any other.
    real, _ = softmax.objective_of(scalars, features, {})
    assert softmax.expected_initial_loss(BATCH) == pytest.approx(np.log(BATCH))
    assert float(real) == pytest.approx(np.log(BATCH), rel=0.35)


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
    system, params, carried, *_ = fresh
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Spy(ViT):
        def build(self, dtype=jnp.float32):
            module = super().build(dtype)

            def call(pixels, deterministic):
                seen.append(pixels)
                return module(pixels, deterministic)

            return call

    image = tiny.batch(2)["image"]
    fields = {f.name: getattr(system.image, f.name) for f in dataclasses.fields(ViT)}
    spying = dataclasses.replace(system, image=Spy(**fields))
    with pytest.raises(Exception):  # noqa: B017, PT011 - flax does not bind the parameters of a hidden module
        spying.image_features(params, carried, image)
    expected = (image / 255 - np.asarray(OPENAI_MEAN)) / np.asarray(OPENAI_STD)
    np.testing.assert_allclose(np.asarray(seen[0]), expected, atol=2e-6)


def test_features_are_unit_vectors_and_a_zero_row_has_a_gradient(fresh):
    system, params, carried, *_ = fresh
    batch = tiny.batch(BATCH)
    image = jax.jit(system.image_features)(params, carried, batch["image"])
    text = jax.jit(system.text_features)(params, carried, batch["text"])
    assert image.shape == text.shape == (BATCH, 8) and image.dtype == text.dtype == jnp.float32
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


def test_lit_gives_the_image_encoder_no_gradient_and_leaves_its_statistics():
    system = tiny.resnet_clip(lock_image=True)
    assert system.locked() == ("image/.*",) and tiny.clip().locked() == ()
    batch = tiny.batch(4, image=32)
    params, carried = jax.eval_shape(system.init, jax.random.key(0), batch)
    # Any numbers will do: initialisation would only be compiled for this.
    rng = np.random.default_rng(0)
    params, carried = (
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.1), x.dtype), unboxed(tree))
        for tree in (params, carried)
    )

    @jax.jit
    def gradients(params):
        def loss(params):
            value, (_, changed) = system.loss(params, carried, batch, jax.random.key(0))
            return value, changed

        return jax.grad(loss, has_aux=True)(params)

    gradient, changed = gradients(params)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradient["image"]))
    assert float(jnp.abs(gradient["text_projection"]["kernel"]).max()) > 0
    jax.tree.map(np.testing.assert_array_equal, changed, carried)


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
    with pytest.raises(InputError, match="system.dtype is 'float16'; it must be float32 or bfloat16"):
        tiny.clip(dtype="float16")


def test_a_tokenizer_must_fit_the_embedding_and_the_pooling():
    system = tiny.clip()
    system.check_tokenizer(tiny.TinyTokenizer())
    with pytest.raises(InputError, match=r"33 ids and the text encoder embeds 32; set system.text.vocab to at least 33"):
        system.check_tokenizer(tiny.TinyTokenizer(vocab_size=33, eos=32))
    with pytest.raises(InputError, match=r"end mark must have the highest id.*is 2 of 32: set system.text.pool"):
        system.check_tokenizer(tiny.TinyTokenizer(eos=2))
    tiny.clip(text=tiny.text(pool="last")).check_tokenizer(tiny.TinyTokenizer(eos=2))
