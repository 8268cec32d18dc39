"""How a prompt is put to a system that writes, and how what it wrote is read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from vlmax.data.example import BadRecord, Feature
from vlmax.data.tokenizers import Tokenizer, TokenizerConfig
from vlmax.decoding.settings import Marks
from vlmax.decoding.text import before_stop, marks_of, prompt_tokens
from vlmax.decoding.token_bytes import token_bytes
from vlmax.errors import InputError


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


@dataclasses.dataclass(frozen=True)
class Instruction:
    """How the prompt is put to a Q-Former that reads it beside the image (InstructBLIP, section 2.3)."""

    prompting: Prompting
    """The Q-Former's own tokenizer, and the marks that it was trained with."""
    length: int = 128
    """Tokens with their marks, and padding after them."""

    def row(self, prompt: str, text: str = "") -> Int32[np.ndarray, "length"]:
        """The feature `instruction`; the last words of a text that does not fit are left out."""
        tokens, _ = self.prompting.fitting(prompt, text, self.length)
        return np.array(tokens + [self.prompting.opened.pad_id] * (self.length - len(tokens)), np.int32)


def prompt_row(tokens: Sequence[int], length: int) -> dict[str, Int32[np.ndarray, "length"]]:
    """The features `prompt`, tokens at the end of a row, and `prompt_valid`, 1 where they are."""
    row, valid = np.zeros(length, np.int32), np.zeros(length, np.int32)
    row[length - len(tokens) :], valid[length - len(tokens) :] = tokens, 1
    return {"prompt": row, "prompt_valid": valid}


def prompt_features(length: int, instruction: Instruction | None) -> dict[str, Feature]:
    """What `prompt_row` and `Instruction.row` give."""
    sizes = {"prompt": length, "prompt_valid": length}
    if instruction is not None:
        sizes["instruction"] = instruction.length
    return {name: Feature((size,), "int32") for name, size in sizes.items()}
