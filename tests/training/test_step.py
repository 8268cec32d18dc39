"""The train step: exact accumulation, skipped steps, averages, freezing, batch statistics."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from vlmax.data.digest import digest_numpy, key_hash
from vlmax.errors import InputError
from vlmax.sharding.mesh import Mesh
from vlmax.systems.clip import Sigmoid, Softmax
from vlmax.training import patterns
from vlmax.training.optimizers import AdamW, Optimizer
from vlmax.training.schedules import Constant
from vlmax.training.setup import device_context, prepare
from vlmax.training.state import TrainState, params_for_evaluation, params_of, zero
from vlmax.training.step import join_batch, split_batch, train_step, two_pass, whole_batch

ONE = Mesh(data=1)
EIGHT = Mesh(data=2, fsdp=2, tensor=2)


def on_devices(experiment, mesh: Mesh, work):
    """Prepares the experiment on that mesh (one device, or all eight) and gives what `work(run)` gives."""
    experiment = dataclasses.replace(experiment, mesh=mesh)
    devices = jax.devices()[:1] if mesh == ONE else jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices)
        with device_context(experiment) as built:
            return work(prepare(experiment, built))


# Accumulation.


def test_splitting_and_joining_are_inverse_and_keep_every_row():
    batch = {"x": jnp.arange(24).reshape(12, 2)}
    parts = split_batch(batch, 4)
    assert parts["x"].shape == (4, 3, 2)
    np.testing.assert_array_equal(join_batch(parts)["x"], batch["x"])


@pytest.mark.parametrize("mesh", [ONE, EIGHT], ids=["one device", "2 x 2 x 2"])
@pytest.mark.parametrize("objective", [Softmax(chunk=48), Sigmoid(chunk=48)], ids=["softmax", "sigmoid"])
def test_eight_microbatches_of_32_have_the_gradients_of_one_batch_of_256(objective, mesh):
    experiment = tiny.with_data(tiny.experiment(system=tiny.clip(objective=objective), microbatches=8), batch_size=256)

    def work(run):
        state = run.init()
        batch = jax.device_put(tiny.batch(256), run.batch_sharding)

        @jax.jit
        def both(state, batch):
            parts = (run.experiment.system, state.trainable, state.frozen, state.carried, batch, jax.random.key(0))
            (value, metrics, _, whole), (other, others, _, micro) = whole_batch(*parts), two_pass(*parts, 8)
            return (value, metrics, whole), (other, others, micro)

        return tiny.copied(both(state, batch))

    (value, metrics, whole), (other, others, micro) = on_devices(experiment, mesh, work)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    assert metrics.keys() == others.keys()
    for name in metrics:
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5, err_msg=name)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(whole))
    for path, gradient in patterns.flatten(whole).items():
        difference = np.abs(patterns.flatten(micro)[path] - gradient).max()
        # The gradient of the keys' bias is zero in theory: only there does the scale of the others matter.
        scale = largest if path.endswith("key/bias") else np.abs(gradient).max()
        assert difference <= 1e-5 * scale, (path, difference, scale)


def test_microbatches_need_a_loss_that_can_be_taken_apart():
    with pytest.raises(InputError, match=r"microbatches is 2.*Line.*set microbatches to 1"):
        train_step(Line(), optax.sgd(0.1), optax.constant_schedule(0.1), seed=0, microbatches=2)


# What a step does beside the gradient, on a system of two numbers.


@dataclasses.dataclass(frozen=True)
class Line:
    """Least squares on a line; `carried` counts its calls and `draw` is its random number."""

    def inputs(self):
        return {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}

    def init(self, rng, batch):
        return {"weights": jnp.ones(2), "fixed": {"offset": jnp.float32(1.0)}}, {"calls": zero()}

    def loss(self, params, carried, batch, rng):
        error = batch["x"] @ params["weights"] + params["fixed"]["offset"]
        # The root has no finite gradient at zero: a finite loss with a gradient that is not.
        loss = jnp.mean(error**2) + jnp.sum(jnp.sqrt(jnp.abs(params["weights"] * batch["x"][0])))
        return loss, ({"draw": jax.random.uniform(rng)}, {"calls": carried["calls"] + 1})

    def constrain(self, params):
        return {**params, "weights": jnp.clip(params["weights"], -5.0, 1.25)}

    def parts(self):
        return {"line": ".*"}

    def check_tokenizer(self, tokenizer):
        return None

    def locked(self):
        return ()

    def flops_per_example(self):
        return {"line": 4.0}

    def expected_initial_loss(self, batch_size):
        return None


RAMP = optax.linear_schedule(0.0, 1.0, 10)


@pytest.fixture(scope="module")
def line():
    step = jax.jit(train_step(Line(), optax.sgd(RAMP), RAMP, seed=3, ema_decay=0.75))
    params, carried = Line().init(None, None)
    trainable = {"weights": params["weights"]}
    optimizer = optax.sgd(RAMP).init(trainable)
    frozen = {"fixed": params["fixed"]}
    return step, TrainState(zero(), trainable, frozen, optimizer, carried, trainable, zero(), zero())


GOOD = {"x": jnp.asarray([[1.0, 2.0], [0.5, -1.0]])}


@pytest.mark.parametrize(
    "bad",
    [{"x": GOOD["x"].at[0, 0].set(jnp.nan)}, {"x": GOOD["x"].at[0].set(0.0)}],
    ids=["loss is NaN", "loss is finite, its gradient is not"],
)
def test_a_step_that_is_not_finite_is_counted_and_changes_nothing_else(line, bad):
    step, state = line
    for _ in range(2):
        state, _ = step(state, GOOD)
    assert not np.array_equal(state.ema["weights"], state.trainable["weights"])  # the average has where to go
    after, metrics = step(state, bad)
    for field in ("trainable", "frozen", "optimizer", "carried", "ema"):
        for a, b in zip(jax.tree.leaves(getattr(after, field)), jax.tree.leaves(getattr(state, field)), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=field)
    assert int(after.step) == 3 and int(after.nonfinite_in_row) == 1 and int(after.nonfinite_total) == 1
    assert int(metrics["nonfinite_in_row"]) == 1
    twice, _ = step(after, bad)
    assert int(twice.nonfinite_in_row) == 2 and int(twice.nonfinite_total) == 2
    well, metrics = step(twice, GOOD)
    assert int(well.nonfinite_in_row) == 0 and int(well.nonfinite_total) == 2 and int(well.step) == 5
    assert not np.array_equal(well.trainable["weights"], state.trainable["weights"])
    # Two of the four steps before this one were skipped, so that this is update 2 of the schedule.
    assert float(metrics["learning_rate"]) == pytest.approx(0.2)


def test_the_reported_learning_rate_is_the_one_that_was_used(line):
    step, state = line
    state, _ = step(state, GOOD)
    before = np.array(state.trainable["weights"])
    after, metrics = step(state, {"x": jnp.asarray([[1e-2, 1e-2]])})
    moved = np.linalg.norm(np.array(after.trainable["weights"]) - before)
    assert moved == pytest.approx(float(metrics["learning_rate"]) * float(metrics["gradient_norm"]), rel=1e-3)


def test_the_average_follows_the_parameters_and_is_what_evaluations_see(line):
    step, state = line
    state, _ = step(state, GOOD)
    after, _ = step(state, GOOD)
    expected = 2 / 11 * state.ema["weights"] + 9 / 11 * after.trainable["weights"]  # the second update
    np.testing.assert_allclose(after.ema["weights"], expected, rtol=1e-6)
    assert not np.array_equal(after.ema["weights"], after.trainable["weights"])
    seen = params_for_evaluation(after)
    np.testing.assert_array_equal(seen["weights"], after.ema["weights"])
    assert float(seen["fixed"]["offset"]) == 1.0
    np.testing.assert_array_equal(params_of(after)["weights"], after.trainable["weights"])
    late = dataclasses.replace(state, step=jnp.int32(100), nonfinite_total=jnp.int32(7))
    far, _ = step(late, GOOD)
    expected = 0.75 * late.ema["weights"] + 0.25 * far.trainable["weights"]
    np.testing.assert_allclose(far.ema["weights"], expected, rtol=1e-6)
    without = dataclasses.replace(after, ema={})
    np.testing.assert_array_equal(params_for_evaluation(without)["weights"], after.trainable["weights"])


def test_random_numbers_depend_on_the_step_and_the_seed_alone(line):
    step, state = line
    moved = dataclasses.replace(state, trainable={"weights": jnp.asarray([0.3, 0.4])})
    later = dataclasses.replace(state, step=jnp.int32(1))
    first, again, others = (step(s, GOOD)[1]["draw"] for s in (state, moved, later))
    assert float(first) == float(again) != float(others)
    other_seed = jax.jit(train_step(Line(), optax.sgd(RAMP), RAMP, seed=4, ema_decay=0.75))
    assert float(other_seed(state, GOOD)[1]["draw"]) != float(first)


def test_constrained_parameters_stay_in_bounds_and_frozen_ones_as_they_are(line):
    step, state = line
    near = dataclasses.replace(state, step=jnp.int32(10), trainable={"weights": jnp.asarray([1.2, 1.2])})
    near = dataclasses.replace(near, optimizer=jax.tree.map(lambda x: x + 10, near.optimizer))
    after, _ = step(near, {"x": jnp.asarray([[-3.0, -3.0]])})
    np.testing.assert_array_equal(after.trainable["weights"], [-5.0, -5.0])
    assert float(after.frozen["fixed"]["offset"]) == 1.0


def test_the_step_hashes_the_keys_and_counts_the_votes(line):
    step, state = line
    keys = np.stack([key_hash("source", key) for key in ("a", "b")])
    _, metrics = step(state, {**GOOD, "key_hash": keys, "votes": jnp.asarray([0, 2, 1])})
    np.testing.assert_array_equal(metrics["digest"], digest_numpy(keys))
    assert int(metrics["votes"]) == 2


# CLIP itself.


def steps(run, count: int, size: int, image: int = tiny.IMAGE, early: int | None = None):
    """The state before, after `early` and after all steps on one batch, and every step's metrics, on the host."""
    state = run.init()
    states, metrics = [tiny.copied(state)], []
    batch = jax.device_put(tiny.batch(size, image), run.batch_sharding)
    for step in range(1, count + 1):
        state, now = run.step(state, batch)
        metrics.append(tiny.copied(now))
        if step in (early, count):
            states.append(tiny.copied(state))
    return *states, metrics


@pytest.fixture(scope="module")
def locked():
    """LiT with frozen token embeddings and a temperature at its bound, on eight devices."""
    system = tiny.clip(lock_image=True, objective=Softmax(temperature=0.0101))
    optimizer = Optimizer(AdamW(weight_decay=0.1), Constant(peak=0.05), frozen=("text/token_embedding/.*",))
    experiment = tiny.experiment(system=system, optimizer=optimizer, frozen_dtype="bfloat16")
    return on_devices(experiment, EIGHT, lambda run: (run, *steps(run, 3, 32)))


def test_frozen_parameters_stay_bit_equal_and_have_no_state(locked):
    run, before, after, _ = locked
    frozen = patterns.flatten(before.frozen)
    assert {path.split("/")[0] for path in frozen} == {"image", "text"}
    assert all(path.startswith(("image/", "text/token_embedding/")) for path in frozen)
    for path, leaf in frozen.items():
        np.testing.assert_array_equal(patterns.flatten(after.frozen)[path], leaf, err_msg=path)
        assert leaf.dtype == jnp.bfloat16
    trainable = patterns.flatten(before.trainable)
    assert not trainable.keys() & frozen.keys()
    assert trainable.keys() | frozen.keys() == patterns.flatten(run.boxed).keys()
    values = sum(leaf.size for leaf in trainable.values())
    assert sum(leaf.size for leaf in jax.tree.leaves(before.optimizer)) <= 2 * values + 4  # two moments and counters
    assert run.frozen_parts == ("image encoder",)


def test_what_is_not_frozen_moves(locked):
    _, before, after, _ = locked
    for path, leaf in patterns.flatten(before.trainable).items():
        if not path.endswith("key/bias"):  # its gradient is zero
            assert not np.array_equal(patterns.flatten(after.trainable)[path], leaf), path


def test_the_temperature_stays_inside_its_bounds(locked):
    _, before, after, metrics = locked
    assert before.trainable["objective"]["log_scale"] < np.log(100)
    scales = [float(m["scale"]) for m in metrics]
    assert all(1 <= scale <= 100.001 for scale in scales)
    clamped = tiny.clip().constrain({"objective": {"log_scale": jnp.float32(7.0)}, "other": 1})
    assert float(clamped["objective"]["log_scale"]) == pytest.approx(np.log(100)) and clamped["other"] == 1
    low = tiny.clip().constrain({"objective": {"log_scale": jnp.float32(-1.0)}})
    assert float(low["objective"]["log_scale"]) == 0.0
    assert after.trainable["objective"]["log_scale"] <= np.float32(np.log(100))


def first_on_one_device(system, before: TrainState, batch):
    """Loss and carried state of the first step, by one device and without a mesh."""

    @jax.jit
    def forward(params, carried, batch):
        rng = jax.random.fold_in(jax.random.key(0), 0)
        loss, (_, carried) = system.loss(params, carried, batch, rng)
        return loss, carried

    return forward(params_of(before), before.carried, batch)


def test_patch_dropout_trains_and_is_the_same_on_any_mesh():
    experiment = tiny.experiment(system=tiny.clip(image=tiny.vit(patch=2, patch_keep=0.5)))
    before, _, metrics = on_devices(experiment, EIGHT, lambda run: steps(run, 8, 32))
    alone, _ = first_on_one_device(experiment.system, before, tiny.batch(32))
    np.testing.assert_allclose(metrics[0]["loss"], alone, rtol=1e-5)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    whole, _ = first_on_one_device(tiny.clip(image=tiny.vit(patch=2)), before, tiny.batch(32))
    assert abs(float(whole) - float(alone)) > 1e-5 * float(alone)  # patches were in fact dropped


def test_a_resnet_trains_on_the_statistics_of_the_global_batch():
    experiment = tiny.experiment(system=tiny.resnet_clip())
    experiment = tiny.with_data(experiment, preprocess=tiny.TinyFeatures(image=32), batch_size=16)
    before, after_one, after, metrics = on_devices(experiment, EIGHT, lambda run: steps(run, 4, 16, 32, early=1))
    loss, carried = first_on_one_device(experiment.system, before, tiny.batch(16, 32))
    np.testing.assert_allclose(metrics[0]["loss"], loss, rtol=1e-4)
    statistics = patterns.flatten(before.carried)
    assert statistics
    for path, leaf in statistics.items():
        first, last = patterns.flatten(after_one.carried)[path], patterns.flatten(after.carried)[path]
        np.testing.assert_allclose(first, patterns.flatten(carried)[path], rtol=1e-4, atol=1e-5, err_msg=path)
        assert not np.array_equal(first, leaf) and not np.array_equal(last, first), path
    assert metrics[-1]["loss"] < metrics[0]["loss"]
