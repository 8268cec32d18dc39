"""A system that writes, as evaluations use it: batches of images and prompts in, texts out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vlmax.decoding.answers import Answers, Ranked, answer_rows, likeliest
from vlmax.decoding.generate import Generated, generate
from vlmax.decoding.prompts import Prompt
from vlmax.decoding.readers import reader_of
from vlmax.decoding.settings import Generation, Marks
from vlmax.errors import InputError
from vlmax.evaluation import features
from vlmax.evaluation.evaluation import Context
from vlmax.evaluation.prompting import Prompting
from vlmax.systems.system import Carried, Params, Writes

Arrays = Mapping[str, Array]
NOTHING = -1
"""Fills up rows of new tokens."""


class Writer:
    """A system's decoder with the weights as they stand; its functions are compiled once for a system."""

    def __init__(self, system: Writes, params: Params, carried: Carried):
        self.module, self.params = system.decoder_module(), system.decoder_params(params)
        # Systems are frozen dataclasses, which have a hash.
        self._prompted = functools.partial(_prompted(system), params, carried)  # type: ignore[arg-type]

    @property
    def vocab(self) -> int:
        """V of the decoder."""
        return reader_of(self.module, 0).vocab

    def generate(
        self, batch: Arrays, settings: Generation, marks: Marks, token_bytes: Sequence[bytes] | None = None
    ) -> Generated:
        """What the system writes about every image of a global batch, whole on every process.

        Args:
          batch: `image`, `prompt` and `prompt_valid` as `Writes.prompted` takes them, and `valid` bool `[B]`.
          settings: how texts are continued.
          marks: what ends them.
          token_bytes: see `decoding.generate`.

        Raises:
          InputError, RunFailed: as `decoding.generate` does.
        """
        return generate(self.module, self.params, self._prompt(batch), settings, marks, token_bytes=token_bytes)

    def rank(self, batch: Arrays, answers: Answers, marks: Marks, first: int, at_once: int) -> Ranked:
        """The likeliest of some answers to every image and prompt; see `decoding.answers.likeliest`.

        Raises:
          InputError: prompts and answers are together too long for the decoder.
        """
        reader, prompt = reader_of(self.module, marks.start), self._prompt(batch)
        longest = answers.tokens.shape[1]
        if prompt.valid.shape[1] > reader.room(longest):
            raise InputError(
                f"ranking answers: a prompt has {prompt.valid.shape[1]} tokens and an answer {longest}; the model has "
                f"room for a prompt of {reader.room(longest)} beside it; shorten the prompts"
            )
        return likeliest(reader, self.params, prompt, answers, first, at_once)

    def answers(self, answers: Sequence[Sequence[int]]) -> Answers:
        """Candidates for `rank`."""
        return answer_rows(answers, self.vocab)

    def _prompt(self, batch: Arrays) -> Prompt:
        return Prompt(*self._prompted(batch))


@functools.lru_cache(maxsize=8)
def _prompted(system: Any) -> Any:
    @jax.jit
    def prompted(params: Params, carried: Carried, batch: Arrays) -> tuple[Array | None, ...]:
        # A row that only fills up the batch has no prompt; without one token its logits would be no numbers.
        valid = jnp.where(batch["valid"][:, None], batch["prompt_valid"], 1)
        given = {name: array for name, array in batch.items() if name != "valid"}
        found = system.prompted(params, carried, {**given, "prompt_valid": valid})
        inputs, valid = padding_first(found.inputs, found.valid)
        return inputs, valid, found.context, found.context_valid

    return prompted


def padding_first(inputs: Array, valid: Int[Array, "B P"]) -> tuple[Array, Int[Array, "B P"]]:
    """Inputs `[B, P, ...]` with their padding moved to the left.

    Between an image's tokens and a shorter prompt there is some, which the distances that T5 knows would count.
    """
    order = jnp.argsort(valid > 0, axis=1, stable=True)
    places = order.reshape(*order.shape, *(1,) * (inputs.ndim - 2))
    return jnp.take_along_axis(inputs, places, axis=1), jnp.take_along_axis(valid, order, axis=1)


def writes(context: Context, prompting: Prompting, settings: Generation) -> Callable[[Arrays], Arrays]:
    """For `features.source_features`: what the system writes about a batch, and where the batch's rows come from.

    Returns:
      batch -> `tokens` int32 `[B, new]`, read by `new_tokens`, and `index` int32 `[B]`.
    """
    writer, marks, numbers = context.writer(), prompting.marks(), itertools.count(settings.seed)
    pieces = prompting.token_bytes(settings.stop, writer.vocab)

    def write(batch: Arrays) -> Arrays:
        now = dataclasses.replace(settings, seed=next(numbers) % 2**31)  # each batch draws tokens of its own
        texts = writer.generate(described(batch), now, marks, pieces).tokens
        rows = np.full((len(texts), settings.max_new_tokens), NOTHING, np.int32)
        for row, text in zip(rows, texts, strict=True):
            row[: len(text)] = text
        placed = features.from_host(context.mesh, rows, features.batch_spec(context.mesh))
        return {"tokens": placed, "index": batch["index"]}

    return write


def new_tokens(found: Mapping[str, np.ndarray]) -> list[list[int]]:
    """The new tokens of every row that `writes` gave, gathered on the host."""
    return [row[row != NOTHING].tolist() for row in found["tokens"]]


def described(batch: Arrays) -> Arrays:
    """A batch of an evaluation without what only says where its rows come from."""
    return {name: array for name, array in batch.items() if name not in ("index", "key_hash")}
