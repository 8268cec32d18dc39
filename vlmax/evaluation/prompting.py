"""How a prompt is put to a system that writes, and how what it wrote is read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from vlmax.data.example import BadRecord, Feature
from vlmax.data.image_prompts import Instruction
from vlmax.data.tokenizers import Tokenizer, TokenizerConfig
from vlmax.decoding.settings import Marks
from vlmax.decoding.text import before_stop, marks_of, prompt_tokens
from vlmax.decoding.token_bytes import token_bytes
from vlmax.errors import InputError

PROBE = "a photo of two brown dogs that quickly jump over five lazy foxes, zebras 0123456789"
"""Tokenizers that make the same of it are taken to be the same."""


@dataclasses.dataclass(frozen=True)
class Prompting:
    r"""A tokenizer and the marks round prompts and texts.

    BLIP's captioner: `begin="[DEC]"`; its question answering: `begin="[ENC]", closed=True`; BLIP-2 with OPT:
    `end=("\n",)`; with T5: `closed=True`.
    """

    tokenizer: TokenizerConfig
    """The writer's own."""
    begin: str | None = None
    """The mark that begins a prompt, as it is written; None: the tokenizer's, where it has one for that."""
    closed: bool = False
    """A prompt ends with the tokenizer's mark of the end, as an encoder reads it."""
    end: tuple[str, ...] = ()
    """What ends a text that is written, each a single token, as it is written; (): the tokenizer's mark of the end."""

    @functools.cached_property
    def opened(self) -> Tokenizer:
        """The tokenizer, opened once; it travels along into worker processes."""
        return self.tokenizer.open()

    def tokens(self, text: str) -> list[int]:
        """A prompt with its marks; raises `InputError` where nothing is left, or a mark is no single token."""
        tokenizer = self.opened
        if self.begin is None:
            tokens = prompt_tokens(tokenizer, text, self.closed)
        else:
            closing = [tokenizer.eos] if self.closed and tokenizer.eos is not None else []
            tokens = [self._mark("begin", self.begin), *tokenizer.encode(text), *closing]
        if self.closed and tokenizer.eos is None:
            raise InputError(
                "evaluation: prompting.closed is True, and the tokenizer has no mark of the end; name one in the "
                "tokenizer's field eos, or set closed to False"
            )
        return tokens

    def answer(self, text: str) -> list[int]:
        """What the writer would write, with what ends it."""
        return [*self.opened.encode(text), *self.marks().eos[:1]]

    def marks(self) -> Marks:
        """What ends a text, and what an encoder-decoder's begins with."""
        marks = marks_of(self.opened)
        return marks if not self.end else Marks(tuple(self._mark("end", token) for token in self.end), marks.start)

    def written(self, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of new tokens, before what ends it, without space around it."""
        ends = self.marks().eos
        end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        return before_stop(self.opened.decode(tokens[:end]), stop).strip()

    def token_bytes(self, stop: Sequence[str], vocab: int) -> list[bytes] | None:
        """What generation needs to find stop strings; None without any."""
        return token_bytes(self.opened, vocab) if stop else None

    def _mark(self, field: str, token: str) -> int:
        found = self.opened.encode(token)
        if len(found) != 1:
            raise InputError(
                f"evaluation: prompting.{field} names {token!r}, which the tokenizer reads as {len(found)} tokens, not "
                "as one; name one of its tokens, or add it to the tokenizer (its field added)"
            )
        return found[0]

    def fitting(self, prompt: str, text: str, length: int) -> tuple[list[int], bool]:
        """A prompt whose `{}` is a text with as many of its words as fit, and whether some are left out.

        Raises:
          BadRecord: the prompt is too long without any.
        """
        words = text.split(" ")
        for count in range(len(words), -1, -1):
            tokens = self.tokens(prompt.replace("{}", " ".join(words[:count])))
            if len(tokens) <= length:
                return tokens, count < len(words)
        raise BadRecord(f"the prompt alone has more than {length} tokens")


@runtime_checkable
class Prompts(Protocol):
    """An evaluation that puts prompts to a system."""

    def check_prompts(self, system: Any, learned: Any) -> None:
        """Raises `InputError` where they are not what the system reads.

        Args:
          system: what the prompts are put to.
          learned: the preprocess that it is trained with.
        """
        ...


def check_prompts(where: str, prompting: Prompting, instruction: Instruction | None, system: Any, learned: Any) -> None:
    """See `Prompts.check_prompts`; `where` is the evaluation, for messages."""
    _check_tokenizer(f"{where}: prompting.tokenizer", prompting.opened, system.check_tokenizer, learned)
    read = system.inputs().get("instruction")
    length, given = None if read is None else read.shape[0], None if instruction is None else instruction.length
    if length != given:
        raise InputError(
            f"{where}: its instruction has the length {given}, and that of the system {length} (None: there is none); "
            "make the two agree"
        )
    if instruction is not None:
        learned = getattr(learned, "instruction", None)
        _check_tokenizer(f"{where}: instruction.tokenizer", instruction.opened, system.check_instruction, learned)


def _check_tokenizer(field: str, opened: Tokenizer, check: Callable[[Tokenizer], None], learned: Any) -> None:
    try:
        check(opened)
    except InputError as error:
        raise InputError(f"{field}: {error}") from None
    taught: Tokenizer | None = getattr(learned, "opened", None)
    if taught is not None and taught.encode(PROBE) != opened.encode(PROBE):
        raise InputError(
            f"{field} makes other tokens of {PROBE!r} than the tokenizer of data.preprocess, whose tokens the system "
            "learns; give both the same"
        )


def prompt_row(tokens: Sequence[int], length: int) -> dict[str, Int32[np.ndarray, "length"]]:
    """The features `prompt`, tokens at the end of a row, and `prompt_valid`, 1 where they are."""
    row, valid = np.zeros(length, np.int32), np.zeros(length, np.int32)
    row[length - len(tokens) :], valid[length - len(tokens) :] = tokens, 1
    return {"prompt": row, "prompt_valid": valid}


def prompt_features(length: int, instruction: Instruction | None) -> dict[str, Feature]:
    """What `prompt_row` and `Instruction.fixed` give."""
    sizes = {"prompt": length, "prompt_valid": length}
    if instruction is not None:
        sizes["instruction"] = instruction.length
    return {name: Feature((size,), "int32") for name, size in sizes.items()}
