"""From the logits of the next token to the token: what changes them, in Hugging Face's order, and the choice."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from vlmax.decoding.prompts import Prompt
from vlmax.decoding.readers import Reader
from vlmax.decoding.settings import Generation


@dataclasses.dataclass(frozen=True)
class Plan:
    """What of the settings another program must be compiled for.

    Attributes:
      eos: see `Marks`.
      draws: tokens are drawn, rather than the likeliest taken.
      cuts: they are drawn from the likeliest alone.
      penalises: there is a penalty on tokens that are there already.
    """

    eos: tuple[int, ...]
    draws: bool
    cuts: bool
    penalises: bool


class Knobs(NamedTuple):
    """What of the settings is a number to the compiled program; see `Generation`."""

    min_new_tokens: Int[Array, ""]
    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    seed: Int[Array, ""]


def plan_and_knobs(settings: Generation, eos: tuple[int, ...]) -> tuple[Plan, Knobs]:
    """The two halves of the settings."""
    cuts = bool(settings.top_k) or settings.top_p < 1
    plan = Plan(eos, settings.temperature > 0, cuts, settings.repetition_penalty != 1)
    knobs = Knobs(
        np.int32(settings.min_new_tokens),
        np.float32(settings.temperature),
        np.int32(settings.top_k),
        np.float32(settings.top_p),
        np.float32(settings.repetition_penalty),
        np.int32(settings.seed),
    )
    return plan, knobs


Seen = Bool[Array, "*B V"] | None
"""Which tokens a row has, where a penalty asks for it."""


def seen_in(prompt: Prompt, reader: Reader, plan: Plan) -> Seen:
    """The tokens of the prompts; embeddings are none."""
    if not plan.penalises:
        return None
    before = reader.before(prompt)
    seen = jnp.zeros((len(before.valid), reader.vocab), bool)
    return seen.at[jnp.arange(len(seen))[:, None], before.inputs].max(before.valid > 0)


def with_token(seen: Seen, tokens: Int[Array, "*B"]) -> Seen:
    """The tokens of rows that have one more."""
    return None if seen is None else seen | (tokens[..., None] == jnp.arange(seen.shape[-1]))


def allowed(
    scores: Float[Array, "*B V"], seen: Seen, step: Int[Array, ""], plan: Plan, knobs: Knobs
) -> Float[Array, "*B V"]:
    """Logits, or log-probabilities in beam search, after the repetition penalty and the minimum length.

    Args:
      scores: of the token after `step` new ones.
      seen: the tokens of every row.
      step: how many new tokens there are.
      plan: what is compiled.
      knobs: its numbers.
    """
    if seen is not None:
        penalty = knobs.repetition_penalty
        scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    if plan.eos:
        ends = np.isin(np.arange(scores.shape[-1]), plan.eos)
        scores = jnp.where(ends & (step < knobs.min_new_tokens), -jnp.inf, scores)
    return scores


def choose(logits: Float[Array, "B V"], step: Int[Array, ""], plan: Plan, knobs: Knobs) -> Int[Array, " B"]:
    """The likeliest token, or one that is drawn."""
    if not plan.draws:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / knobs.temperature
    if plan.cuts:
        logits = likeliest(logits, knobs.top_k, knobs.top_p)
    key: PRNGKeyArray = jax.random.fold_in(jax.random.key(knobs.seed), step)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def likeliest(logits: Float[Array, "B V"], top_k: Int[Array, ""], top_p: Float[Array, ""]) -> Float[Array, "B V"]:
    """-inf for what is not among the likeliest `top_k` (0: all), nor then among those that together reach `top_p`.

    Equal logits stay or go together.
    """
    size = logits.shape[-1]
    rising = jnp.sort(logits, axis=-1)
    first = jnp.where(top_k > 0, jnp.maximum(size - top_k, 0), 0)
    least = jnp.take(rising, first, axis=-1)[:, None]
    rising = jnp.where(rising < least, -jnp.inf, rising)
    below = jnp.cumsum(jax.nn.softmax(rising, axis=-1), axis=-1) <= 1 - top_p
    # The likeliest always stays; without a `top_p` so does everything that `top_k` left.
    least_p = jnp.min(jnp.where(below.at[:, -1].set(False), jnp.inf, rising), axis=-1, keepdims=True)
    return jnp.where(logits >= jnp.maximum(least, least_p), logits, -jnp.inf)
