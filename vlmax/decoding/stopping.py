"""When a text ends: with a mark of the end, or with the token that completes a stop string.

A stop string may begin and end within tokens. An automaton reads the text byte by byte (Knuth, Morris, Pratt 1977); a
table says for every state and token which state the token's bytes lead to, so that the compiled loop looks it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from vlmax.decoding.sampling import Plan


class StopStrings(NamedTuple):
    """The automata of all stop strings.

    Attributes:
      table: the state after a token; 0 at the beginning, and the highest once the string is complete.
    """

    table: Int[Array, "strings states V"]

    def start(self, *rows: int) -> Int[Array, "*rows strings"]:
        """The states of rows without text."""
        return jnp.zeros((*rows, self.table.shape[0]), jnp.int32)

    def after(self, states: Int[Array, "*B strings"], tokens: Int[Array, "*B"]) -> Int[Array, "*B strings"]:
        """The states after one more token."""
        return self.table[jnp.arange(self.table.shape[0]), states, tokens[..., None]].astype(jnp.int32)

    def complete(self, states: Int[Array, "*B strings"]) -> Bool[Array, "*B"]:
        """Whether some string is in the text."""
        return jnp.any(states == self.table.shape[1] - 1, axis=-1)


def stop_strings(strings: Sequence[str], token_bytes: Sequence[bytes]) -> StopStrings:
    """The automata of strings over a vocabulary.

    Args:
      strings: not empty, nor any of them.
      token_bytes: what every token adds to a text.
    """
    encoded = [string.encode() for string in strings]
    states = max(map(len, encoded)) + 1
    table = np.zeros((len(encoded), states, len(token_bytes)), np.int16)
    by_length = np.argsort([-len(piece) for piece in token_bytes], kind="stable")
    lengths = np.array([len(token_bytes[i]) for i in by_length])
    joined = np.zeros((len(token_bytes), max(1, lengths[0])), np.uint8)
    for row, i in enumerate(by_length):
        joined[row, : lengths[row]] = list(token_bytes[i])
    for number, string in enumerate(encoded):
        moves = automaton(string)
        for state in range(len(string) + 1):
            now = np.full(len(token_bytes), state, np.int16)
            for place in range(lengths[0]):
                here = int(np.searchsorted(-lengths, -place, side="left"))  # tokens longer than `place` come first
                now[:here] = moves[now[:here], joined[:here, place]]
            now[now == len(string)] = states - 1
            table[number, state, by_length] = now
        table[number, len(string) :] = states - 1
    return StopStrings(jnp.asarray(table))


def automaton(string: bytes) -> Int[np.ndarray, "states 256"]:
    """The state after each byte: how much of the string the text ends with; once it is whole, it stays so."""
    moves = np.zeros((len(string) + 1, 256), np.int16)
    fallback = 0
    for state, byte in enumerate(string):
        moves[state] = moves[fallback]
        moves[state, byte] = state + 1
        if state:
            fallback = moves[fallback, byte]
    moves[-1] = len(string)
    return moves


def ends(
    tokens: Int[Array, "*B"], states: Int[Array, "*B strings"] | None, plan: Plan, stops: StopStrings | None
) -> tuple[Bool[Array, "*B"], Int[Array, "*B strings"] | None]:
    """Whether these tokens end their texts, and the automata's states after them."""
    done = jnp.isin(tokens, np.asarray(plan.eos, np.int32)) if plan.eos else jnp.zeros(tokens.shape, bool)
    if stops is None or states is None:
        return done, None
    states = stops.after(states, tokens)
    return done | stops.complete(states), states
