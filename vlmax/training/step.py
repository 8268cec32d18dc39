"""The train step: gradients of the global batch, one optimizer update, metrics. Pure; the loop jits and donates it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from vlmax.data.digest import digest
from vlmax.errors import InputError
from vlmax.systems.system import Additive, Batch, Carried, Metrics, Params, System, TwoPass
from vlmax.training.state import TrainState, merge

Gradients = tuple[Float[Array, ""], Metrics, Carried, Params]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]

# Batch features that the step itself reads and the system does not: keys of the examples, votes of the processes.
KEY_HASH = "key_hash"
VOTES = "votes"


def whole_batch(system: System, trainable: Params, frozen: Params, carried: Carried, batch: Batch, rng) -> Gradients:
    """Loss, metrics, carried state and gradients of the whole batch in one pass."""

    def loss(trainable):
        return system.loss(merge(trainable, frozen), carried, batch, rng)

    (value, (metrics, carried)), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
    return value, metrics, carried, gradients


def split_batch(batch: PyTree[Array], parts: int) -> PyTree[Array]:
    """`[B, ...]` -> `[parts, B / parts, ...]`; part m takes every parts-th row, so that no row changes its device."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def join_batch(parts: PyTree[Array]) -> PyTree[Array]:
    """The inverse of `split_batch`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def two_pass(
    system: TwoPass, trainable: Params, frozen: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray, parts: int
) -> Gradients:
    """Exact gradients of a loss over the whole batch, holding the activations of one microbatch at a time.

    Gao et al. 2021 (GradCache, section 3). First every microbatch's features without gradient; then the loss over all
    of them and its gradient with respect to the features; then each microbatch again, its gradient pulled back.
    """
    micro = split_batch(batch, parts)
    rngs = jax.random.split(rng, parts)

    def encode(trainable, carried, batch, rng):
        return system.encode(merge(trainable, frozen), carried, batch, rng)

    def first(carried, inputs):
        features, carried = encode(trainable, carried, *inputs)
        return carried, features

    _, features = jax.lax.scan(first, carried, (micro, rngs))

    def objective(trainable, features):
        return system.objective_of(merge(trainable, frozen), join_batch(features), batch)

    (value, metrics), (gradients, pulled) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(
        trainable, features
    )

    def second(carry, inputs):
        carried, gradients = carry
        batch, rng, pulled = inputs
        _, pull, carried = jax.vjp(lambda t: encode(t, carried, batch, rng), trainable, has_aux=True)
        return (carried, jax.tree.map(jnp.add, gradients, pull(pulled)[0])), None

    (carried, gradients), _ = jax.lax.scan(second, (carried, gradients), (micro, rngs, pulled))
    return value, metrics, carried, gradients


def additive(
    system: Additive, trainable: Params, frozen: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray, parts: int
) -> Gradients:
    """Exact gradients of a loss that is a sum over examples, holding the activations of one microbatch at a time.

    What the sums are divided by is counted over the whole batch first; then the shares of the microbatches add up.
    """
    counts = system.counts(batch)
    micro = split_batch(batch, parts), jax.random.split(rng, parts)

    def share(carried, batch, rng):
        def loss(trainable):
            return system.share(merge(trainable, frozen), carried, batch, rng, counts)

        (value, (metrics, carried)), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        return carried, (value, metrics, gradients)

    def add(carry, inputs):
        carried, total = carry
        carried, new = share(carried, *inputs)
        return (carried, jax.tree.map(jnp.add, total, new)), None

    _, shapes = jax.eval_shape(share, carried, *jax.tree.map(lambda x: x[0], micro))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (carried, (value, metrics, gradients)), _ = jax.lax.scan(add, (carried, nothing), micro)
    return value, metrics, carried, gradients


def select(condition: Array, yes: PyTree[Array], no: PyTree[Array]) -> PyTree[Array]:
    """`yes` where the scalar condition holds, else `no`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def norm_of(tree: PyTree[Array]) -> Float[Array, ""]:
    """The l2 norm of all leaves together.

    The first dimension of a leaf is summed last: a CPU then shares the sum among its cores.
    """

    def square(x: Array) -> Array:
        return jnp.sum(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), dtype=jnp.float32))

    return jnp.sqrt(sum(map(square, jax.tree.leaves(tree)), jnp.zeros(())))


def train_step(
    system: System,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    microbatches: int = 1,
    ema_decay: float | None = None,
) -> StepFunction:
    """The step function `(state, batch) -> (state', metrics)`.

    A step whose loss or gradient is not finite changes nothing but the counters. (Whether the update is finite, too, is
    known only when all of it is there, and holding it back until then would cost a pass over parameters and state: the
    loop reads `parameter_norm` before it saves anything.) The rng of a step is a function of `seed` and the step alone.

    The batch holds the system's inputs, and may hold `key_hash` uint32 `[B, 2]`, of which the metrics `digest` is made,
    and `votes` int32 `[devices]`, whose maximum every process reads.

    Raises:
      InputError: microbatches over a system whose loss cannot be taken apart.
    """
    if microbatches > 1 and not isinstance(system, TwoPass | Additive):
        raise InputError(
            f"microbatches is {microbatches}, and the loss of {type(system).__name__} is neither made of per-example "
            "features (encode, objective_of) nor a sum over examples (counts, share); set microbatches to 1"
        )

    def gradients_of(state: TrainState, batch: Batch, rng: PRNGKeyArray) -> Gradients:
        parts = (state.trainable, state.frozen, state.carried, batch, rng)
        if microbatches == 1:
            return whole_batch(system, *parts)
        if isinstance(system, Additive):
            return additive(system, *parts, microbatches)
        assert isinstance(system, TwoPass)
        return two_pass(system, *parts, microbatches)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        batch = dict(batch)
        key_hash, votes = batch.pop(KEY_HASH, None), batch.pop(VOTES, None)
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        loss, parts, carried, gradients = gradients_of(state, batch, rng)
        norm = norm_of(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        trainable = without(system.constrain(merge(trainable, state.frozen)), trainable)
        trainable, optimizer_state, carried = select(
            finite, (trainable, optimizer_state, carried), (state.trainable, state.optimizer, state.carried)
        )
        updates_before = state.step - state.nonfinite_total  # skipped steps do not count
        ema = state.ema
        if ema_decay is not None:
            decay = average_decay(ema_decay, updates_before)
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, trainable)
            ema = select(finite, average, ema)
        nonfinite = jnp.where(finite, 0, state.nonfinite_in_row + 1)
        metrics = {
            "loss": loss,
            "learning_rate": schedule(updates_before),
            "gradient_norm": norm,
            "parameter_norm": norm_of(trainable),
            "nonfinite_in_row": nonfinite,
            **parts,
        }
        if key_hash is not None:
            metrics["digest"] = digest(key_hash)
        if votes is not None:
            metrics["votes"] = jnp.max(votes)
        after = TrainState(
            step=state.step + 1,
            trainable=trainable,
            frozen=state.frozen,
            optimizer=optimizer_state,
            carried=carried,
            ema=ema,
            nonfinite_in_row=nonfinite,
            nonfinite_total=state.nonfinite_total + jnp.where(finite, 0, 1),
        )
        return after, metrics

    return step


def average_decay(decay: float, updates: Int[Array, ""]) -> Float[Array, ""]:
    """The decay of the moving average after so many updates: short at first, or the fresh weights would stay in it."""
    return jnp.minimum(decay, (1 + updates) / (10 + updates))


def without(params: Params, like: Params) -> Params:
    """The leaves of `params` that `like` has too."""
    return {name: without(params[name], sub) if isinstance(sub, dict) else params[name] for name, sub in like.items()}
