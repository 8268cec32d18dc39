"""SentencePiece models: T5, SigLIP, LLaMA, Vicuna, Mistral."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from vlmax.data.tokenizers.tokenizer import Tokenizer, before_end, ends_of, read, wrong_file
from vlmax.errors import InputError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What stands for a space in a piece."""


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model, and the tokens that were added to it.

    Attributes:
      path: the `.model` file.
      pad: the padding id, where it is not the model's own: SigLIP pads with its end mark, 1; LLaVA with `<unk>`, 0; an
        added token's id does too.
      extra_ids: T5's sentinels: 100 tokens, of which `<extra_id_0>` has the highest id, 32099.
      added: further tokens, with the next free ids.
      marks: `<s>`, `</s>`, `<unk>` and `<pad>` stand for themselves where a text has them, as in transformers; without
        it they are text like any other, as in SentencePiece itself.
      legacy: the text after an added token or mark begins with a space of the model's making, as the first does: the
        behaviour of LLaMA's and T5's first tokenizers in transformers, which files without `"legacy": false` ask for.
      begins: a language model's prompt begins with the mark of the beginning, where the model has one.
    """

    path: str
    pad: int | None = None
    extra_ids: int = 0
    added: tuple[str, ...] = ()
    marks: bool = False
    legacy: bool = True
    begins: bool = True

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where the file is missing or no model, or there is no padding id."""
        data = read(self.path, "SentencePiece.path")
        try:
            processor = sentencepiece.SentencePieceProcessor()
            processor.load_from_serialized_proto(data)
            if not data:
                raise ValueError("it is empty")
        except (RuntimeError, ValueError) as error:
            raise wrong_file(self.path, "SentencePiece.path", "a SentencePiece model", error) from None
        names = self._names(processor)
        size = 1 + max([len(processor) - 1, *names.values()])
        bos, eos, pad = (i if i >= 0 else None for i in (processor.bos_id(), processor.eos_id(), processor.pad_id()))
        pad = pad if self.pad is None else self.pad
        if pad is None or not 0 <= pad < size:
            raise InputError(
                f"opening the tokenizer {self.path}: its padding id is {pad}; give one of its ids, 0 to {size - 1}, in "
                "the tokenizer's field SentencePiece.pad"
            )
        bare = None if self.legacy or not names else _without_prefix(data)
        begin = (bos,) if self.begins and bos is not None else ()
        return PieceTokenizer(processor, size, pad, bos, eos, names, bare, begin)

    def _names(self, processor: sentencepiece.SentencePieceProcessor) -> dict[str, int]:
        """What stands for itself in a text, with its id."""
        if self.extra_ids < 0 or not all(self.added):
            raise InputError(
                f"opening the tokenizer {self.path}: extra_ids is {self.extra_ids} and added {list(self.added)}; "
                "extra_ids must not be negative, and no added token empty"
            )
        names = {f"<extra_id_{i}>": len(processor) + self.extra_ids - 1 - i for i in range(self.extra_ids)}
        pieces = {processor.id_to_piece(i): i for i in range(len(processor))}
        for token in self.added:
            if token not in names:
                names[token] = pieces.get(
                    token, len(processor) + len([i for i in names.values() if i >= len(processor)])
                )
        if self.marks:
            marks = (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id())
            names |= {processor.id_to_piece(i): i for i in marks if i >= 0}
        return names


@dataclasses.dataclass
class PieceTokenizer:
    """A `Tokenizer` on SentencePiece.

    Attributes:
      names: tokens that stand for themselves in a text, with their ids.
      bare: the model without its leading space, for the text after such a token; None: `processor` reads that too.
      further_ends: of `ends`, those after `eos`.
    """

    processor: sentencepiece.SentencePieceProcessor
    vocab_size: int
    pad_id: int
    bos: int | None
    eos: int | None
    names: dict[str, int]
    bare: sentencepiece.SentencePieceProcessor | None = None
    begin: tuple[int, ...] = ()
    further_ends: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """See `Tokenizer`."""
        return ends_of(self.eos, self.further_ends)

    def encode(self, text: str) -> list[int]:
        """The ids of the text alone."""
        if not self.names:
            return self.processor.encode(text)
        ids: list[int] = []
        for i, part in enumerate(self._any_name.split(text)):
            if i % 2:
                ids.append(self.names[part])
            else:
                ids.extend((self.bare if i and self.bare else self.processor).encode(part))
        return ids

    @functools.cached_property
    def _any_name(self) -> re.Pattern[str]:
        longest_first = sorted(self.names, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids before the first that ends; marks, `<unk>` and added tokens are left out."""
        size, unknown = len(self.processor), self.processor.unk_id()
        kept = [i for i in before_end(ids, self.bos, self.ends) if i < size and i != unknown]
        text = self.processor.decode(kept)
        # It drops all spaces at the beginning, also those that followed an `<unk>`; only the first is of its making.
        pieces = "".join(map(self.processor.id_to_piece, kept))
        spaces = len(pieces) - len(pieces.lstrip(SPACE)) - 1
        return " " * (spaces - (len(text) - len(text.lstrip(" ")))) + text


def _without_prefix(data: bytes) -> sentencepiece.SentencePieceProcessor:
    """The model that puts no space before a text."""
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(data)
    model.normalizer_spec.add_dummy_prefix = False
    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(model.SerializeToString())
    return processor
