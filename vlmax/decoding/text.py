"""Continues texts: the tokenizer before and after `generate`, and text as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from vlmax.data.tokenizers import Tokenizer
from vlmax.decoding.generate import generate
from vlmax.decoding.readers import EncoderDecoder, reader_of
from vlmax.decoding.settings import GREEDY, Generation, Marks
from vlmax.decoding.token_bytes import UNKNOWN, token_bytes
from vlmax.errors import InputError

OnText = Callable[[int, str], None]
"""Is given the number of a prompt and what was added to its text."""


def continue_texts(
    model: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: Generation = GREEDY,
    *,
    on_text: OnText | None = None,
) -> list[str]:
    """What the model writes after every text; a stop string is left out.

    Args:
      model: see `generate`.
      params: see `generate`.
      tokenizer: the model's own.
      texts: the prompts, without marks.
      settings: see `Generation`.
      on_text: is called as soon as something is added to a text. The parts together are the returned text, unless a
        tokenizer changes what it has written before (BERT's closes up spaces).

    Raises:
      InputError: see `generate`.
    """
    marks = marks_of(tokenizer)
    encoder_decoder = isinstance(reader_of(model, marks.start), EncoderDecoder)
    prompts = [prompt_tokens(tokenizer, text, encoder_decoder) for text in texts]
    pieces = token_bytes(tokenizer, model.config.vocab) if settings.stop else None
    if on_text is None:
        found = generate(model, params, prompts, settings, marks, token_bytes=pieces)
        return [before_stop(tokenizer.decode(tokens), settings.stop) for tokens in found.tokens]
    streams = [Stream(tokenizer, settings.stop) for _ in texts]

    def on_tokens(tokens: list[int | None]) -> None:
        for i, token in enumerate(tokens):
            added = "" if token is None else streams[i].add(token)
            if added:
                on_text(i, added)

    generate(model, params, prompts, settings, marks, token_bytes=pieces, on_tokens=on_tokens)
    for i, stream in enumerate(streams):
        if rest := stream.rest():
            on_text(i, rest)
    return [stream.text() for stream in streams]


def marks_of(tokenizer: Tokenizer) -> Marks:
    """The marks of a tokenizer; an encoder-decoder's output begins with padding, as T5's does."""
    return Marks(tokenizer.ends, tokenizer.pad_id)


def prompt_tokens(tokenizer: Tokenizer, text: str, encoder_decoder: bool) -> list[int]:
    """The text with its marks.

    A decoder's text begins with what the tokenizer says (LLaMA's with its mark of the beginning, GPT-2's with nothing).
    An encoder's text ends with the mark of the end.

    Raises:
      InputError: nothing is left to continue.
    """
    tokens = tokenizer.encode(text)
    if encoder_decoder:
        return tokens if tokenizer.eos is None else [*tokens, tokenizer.eos]
    tokens = [*tokenizer.begin, *tokens]
    if not tokens:
        raise InputError("generation: the prompt is empty, and the tokenizer has no mark that begins a text; write one")
    return tokens


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min([place for place in map(text.find, stop) if place >= 0], default=len(text))]


class Stream:
    """A text as it grows: gives what is sure to stay.

    Attributes:
      tokens: those of the text.
      given: how many characters were given so far.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens: list[int] = []
        self.given = 0

    def add(self, token: int) -> str:
        """What this token adds. Half a character waits for its other half, and so does half a stop string."""
        self.tokens.append(token)
        text = self.text().rstrip(UNKNOWN)
        halves = [string[:size] for string in self.stop for size in range(1, len(string))]
        waiting = max((len(half) for half in halves if text.endswith(half)), default=0)
        return self._give(text[: len(text) - waiting])

    def rest(self) -> str:
        """What was held back, once nothing follows."""
        return self._give(self.text())

    def text(self) -> str:
        """The text of all tokens, before a stop string."""
        return before_stop(self.tokenizer.decode(self.tokens), self.stop)

    def _give(self, text: str) -> str:
        added = text[self.given :]
        self.given = max(self.given, len(text))
        return added
