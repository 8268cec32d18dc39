"""Beam search as Hugging Face's generate() does it: which texts run on, which are finished, and when it ends.

Each prompt has `beams` running texts and room for `beams` finished ones. At every step the best continuations of all
its running texts are candidates: those among the best `beams` that end here are held against the finished ones, and the
best that do not end run on. A finished text's score is its log-probability divided by its tokens to the power of the
length penalty.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlmax.decoding.compiled import TokenLoop
from vlmax.decoding.prompts import Prompt
from vlmax.decoding.readers import Reader
from vlmax.decoding.sampling import Knobs, Plan, Seen, allowed, seen_in, with_token
from vlmax.decoding.settings import Generation
from vlmax.decoding.stopping import StopStrings, ends
from vlmax.models.layers.axes import constrain
from vlmax.models.layers.cache import Cache, laid_out

NEVER = -1.0e9
"""The score of what must not win: the reference's own value."""


@dataclasses.dataclass(frozen=True)
class BeamPlan:
    """What of a beam search another program must be compiled for; see `Generation` for the fields.

    Attributes:
      hopeful: whether, to see if a running text might still win, it is given its best possible length.
    """

    plan: Plan
    beams: int
    early: bool
    hopeful: bool

    @property
    def candidates(self) -> int:
        """As many continuations as leave `beams` of them running whatever ends."""
        return self.beams * max(2, 1 + len(self.plan.eos))


def beam_plan(settings: Generation, plan: Plan) -> BeamPlan:
    """The plan of a beam search."""
    hopeful = settings.early_stopping == "never" and settings.length_penalty > 0
    return BeamPlan(plan, settings.beams, settings.early_stopping is True, hopeful)


class Limits(NamedTuple):
    """How long texts may be, and what their length costs.

    Attributes:
      new: the most new tokens.
      divisors: of a finished text's log-probability, by its tokens.
    """

    new: Int[Array, ""]
    divisors: Float[Array, " lengths"]


def limits(settings: Generation, slots: int) -> Limits:
    """The limits, with divisors for as many tokens as a cache could hold."""
    divisors = np.arange(1, slots + 1, dtype=np.float64) ** settings.length_penalty
    return Limits(np.int32(settings.max_new_tokens), np.concatenate([[1.0], divisors]).astype(np.float32))


class Finished(NamedTuple):
    """Finished texts, the best first; places that no text has taken yet have `taken` False."""

    tokens: Int[Array, "B beams slots"]
    scores: Float[Array, "B beams"]
    lengths: Int[Array, "B beams"]
    taken: Bool[Array, "B beams"]


class Running(NamedTuple):
    """Running texts, the best first."""

    tokens: Int[Array, "B beams slots"]
    scores: Float[Array, "B beams"]
    seen: Seen
    states: Int[Array, "B beams strings"] | None


class Search(NamedTuple):
    """The state of the search.

    Attributes:
      cache: of the running texts, `B * beams` rows; their newest token is not read yet.
      count: tokens of a running text.
      running: the texts that go on.
      finished: the best that have ended.
      open: of a prompt, whether a running text might still be better than a finished one.
      stuck: whether every continuation ended.
      sound: no logit was NaN so far.
    """

    cache: Cache
    count: Int[Array, ""]
    running: Running
    finished: Finished
    open: Bool[Array, " B"]
    stuck: Bool[Array, ""]
    sound: Bool[Array, ""]


class Settled(NamedTuple):
    """What stays the same from step to step, beside the plan."""

    knobs: Knobs
    limits: Limits
    stops: StopStrings | None


@functools.partial(jax.jit, static_argnames=("reader", "plan", "slots"))
def begin_search(reader: Reader, plan: BeamPlan, slots: int, params: Any, prompt: Prompt, settled: Settled) -> Search:
    """Reads the prompts into a cache of as many slots, and chooses the first token of every running text."""
    logits, cache = reader.start(params, prompt, slots)
    batch, beams, stops = len(logits), plan.beams, settled.stops
    seen = seen_in(prompt, reader, plan.plan)
    tokens, none = jnp.zeros((batch, beams, slots), jnp.int32), jnp.full((batch, beams), NEVER)
    search = Search(
        cache=repeated(cache, beams),
        count=jnp.zeros((), jnp.int32),
        running=Running(
            tokens,
            none.at[:, 0].set(0.0),  # they are all alike: only the first may go on
            None if seen is None else jnp.repeat(seen[:, None], beams, axis=1),
            None if stops is None else stops.start(batch, beams),
        ),
        finished=Finished(tokens, none, jnp.zeros((batch, beams), jnp.int32), jnp.zeros((batch, beams), bool)),
        open=jnp.ones(batch, bool),
        stuck=jnp.zeros((), bool),
        sound=jnp.ones((), bool),
    )
    return advanced(search, jnp.repeat(logits, beams, axis=0), plan, settled)


@functools.partial(TokenLoop, static=("reader", "plan"), used_up="search")
def finish_search(reader: Reader, plan: BeamPlan, params: Any, search: Search, settled: Settled) -> Search:
    """Goes on until nothing better can be found; a prompt's best text is its first finished one. Uses up `search`."""

    def goes_on(search: Search) -> Bool[Array, ""]:
        full = jnp.all(search.finished.taken) if plan.early else False
        return jnp.any(search.open) & ~jnp.asarray(full) & ~search.stuck

    def step(search: Search) -> Search:
        newest = jax.lax.dynamic_index_in_dim(search.running.tokens, search.count - 1, axis=2, keepdims=False)
        logits, cache = reader.step(params, newest.reshape(-1), search.cache)
        return advanced(search._replace(cache=cache), logits, plan, settled)

    search = jax.lax.while_loop(goes_on, step, search)
    # Said of the results themselves, too: what is said within a loop need not hold after it.
    tokens, scores, lengths, taken = search.finished
    whole = constrain(tokens, None, None, None), constrain(scores, None, None), constrain(lengths, None, None)
    return search._replace(finished=Finished(*whole, taken))


def advanced(search: Search, logits: Float[Array, "rows V"], plan: BeamPlan, settled: Settled) -> Search:
    """The search after every running text has gone on by one token."""
    running, (knobs, limits, stops) = search.running, settled
    batch, beams = running.scores.shape
    scores = jax.nn.log_softmax(logits).reshape(batch, beams, -1)
    scores = allowed(scores, running.seen, search.count, plan.plan, knobs) + running.scores[..., None]
    scores = constrain(scores, "batch", None, None)
    found, places = jax.lax.top_k(scores.reshape(batch, -1), plan.candidates)
    parents, newest = places // scores.shape[-1], places % scores.shape[-1]
    tokens = picked(running.tokens, parents)
    tokens = jax.lax.dynamic_update_slice(tokens, newest[..., None].astype(jnp.int32), (0, 0, search.count))
    count = search.count + 1
    states = None if running.states is None else picked(running.states, parents)
    done, states = ends(newest, states, plan.plan, stops)
    done |= count >= limits.new

    scores, chosen = jax.lax.top_k(found + jnp.where(done, NEVER, 0.0), beams)
    rows, seen = picked(parents, chosen), running.seen
    after = Search(
        cache=reordered(search.cache, rows),
        count=count,
        running=Running(
            constrain(picked(tokens, chosen), None, None, None),  # whole on every device, for the hosts to read
            scores,
            None if seen is None else with_token(picked(seen, rows), picked(newest, chosen)),
            None if states is None else picked(states, chosen),
        ),
        finished=with_finished(search, tokens, found, done, plan, limits),
        open=search.open,
        stuck=jnp.all(done),
        sound=search.sound & ~jnp.isnan(jnp.max(logits)),
    )
    return after._replace(open=still_open(after, plan, limits))


def with_finished(
    search: Search,
    tokens: Int[Array, "B candidates slots"],
    found: Float[Array, "B candidates"],
    done: Bool[Array, "B candidates"],
    plan: BeamPlan,
    limits: Limits,
) -> Finished:
    """The finished texts after those of the best `beams` candidates that end have been looked at."""
    before, count = search.finished, search.count + 1
    closed = ~search.open
    if plan.early:
        closed |= jnp.all(before.taken, axis=1)
    new = done & (jnp.arange(plan.candidates) < plan.beams)
    scores = found / limits.divisors[count] + jnp.where(closed, NEVER, 0.0)[:, None] + jnp.where(new, 0.0, NEVER)
    scores, chosen = jax.lax.top_k(jnp.concatenate([before.scores, scores], axis=1), plan.beams)

    def merged(kept, added):
        return picked(jnp.concatenate([kept, added], axis=1), chosen)

    return Finished(
        constrain(merged(before.tokens, tokens), None, None, None),
        constrain(scores, None, None),
        constrain(merged(before.lengths, jnp.broadcast_to(count, new.shape)), None, None),
        merged(before.taken, new),
    )


def still_open(search: Search, plan: BeamPlan, limits: Limits) -> Bool[Array, " B"]:
    """Whether a prompt's best running text might still be better than its worst finished one."""
    best = search.running.scores[:, 0] / limits.divisors[limits.new if plan.hopeful else search.count]
    finished = search.finished
    worst = jnp.where(finished.taken, jnp.min(finished.scores, axis=1, keepdims=True), NEVER)
    return search.open & jnp.any(best[:, None] > worst, axis=1)


def picked(x: Array, places: Int[Array, "B picked"]) -> Array:
    """The entries of the second dimension that are at these places, prompt by prompt."""
    return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), axis=1)


def repeated(cache: Cache, beams: int) -> Cache:
    """The cache with every row as many times."""

    def rows(tree, axis):
        return jax.tree.map(lambda x: jnp.repeat(x, beams, axis=axis), tree)

    def all_laid_out(tree):
        return jax.tree.map(laid_out, rows(tree, -4))

    return dataclasses.replace(
        cache,
        keys=all_laid_out(cache.keys),
        values=all_laid_out(cache.values),
        valid=rows(cache.valid, 0),
        cross=all_laid_out(cache.cross),
        context_segments=rows(cache.context_segments, 0),
    )


def reordered(cache: Cache, parents: Int[Array, "B beams"]) -> Cache:
    """The cache of running texts that go on from others of the same prompt; what prompts alone say stays as it is."""
    places = parents[:, :, None, None, None]

    def taken(x):
        # Prompt by prompt: as rows of one long list they would be sought on all devices.
        *layers, _, heads, slots, width = x.shape
        texts = x.reshape(*layers, *parents.shape, heads, slots, width)
        there = jnp.broadcast_to(places, (*(1,) * len(layers), *places.shape))
        return laid_out(jnp.take_along_axis(texts, there, axis=-4, mode="promise_in_bounds").reshape(x.shape))

    keys, values = jax.tree.map(taken, (cache.keys, cache.values))
    return dataclasses.replace(cache, keys=keys, values=values)
