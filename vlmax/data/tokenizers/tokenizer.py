"""What a tokenizer is, rows of fixed length, and the tokenizer on Hugging Face's `tokenizers` that most are."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import processors

from vlmax.errors import InputError, nearest


@runtime_checkable
class Tokenizer(Protocol):
    """Turns text into ids and back.

    Attributes:
      vocab_size: ids are 0 to vocab_size - 1, marks included; an embedding must have at least as many rows.
      pad_id: what fills a row after the text.
      bos: the mark of the beginning, or None.
      eos: the mark of the end, or None.
      begin: what a language model's prompt begins with, before the ids of its text: `bos` or nothing, as a rule.
      ends: each ends what a language model writes: `eos`, and what else the model was told to end with.
    """

    vocab_size: int
    pad_id: int
    bos: int | None
    eos: int | None
    begin: tuple[int, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        """See above."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of the text alone, without marks."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids before the first that ends; the mark of the beginning is left out."""
        ...


@runtime_checkable
class TokenizerConfig(Protocol):
    """What an experiment holds: a frozen dataclass."""

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where its file is missing or is something else."""
        ...


def to_fixed(
    ids: Sequence[int], length: int, pad_id: int, bos: int | None = None, eos: int | None = None
) -> tuple[Int32[np.ndarray, "length"], bool]:
    """`bos`, as many ids as fit, `eos`, then padding up to `length`; and whether ids were cut off.

    The end mark is always kept, as CLIP does: what is cut off is the end of the text.
    """
    room = length - (bos is not None) - (eos is not None)
    if room < 0:
        raise InputError(f"a text of length {length} has no room for its marks of begin and end; make the text longer")
    row = np.full(length, pad_id, np.int32)
    marked = [*([] if bos is None else [bos]), *ids[:room], *([] if eos is None else [eos])]
    row[: len(marked)] = marked
    return row, len(ids) > room


@dataclasses.dataclass
class FastTokenizer:
    """A `Tokenizer` on Hugging Face's `tokenizers`.

    Attributes:
      clean: prepares a text before it.
      strip: white space round a decoded text is cut off, where it comes from the encoding and not from the text.
      further_ends: of `ends`, those after `eos`.
    """

    fast: tokenizers.Tokenizer
    vocab_size: int
    pad_id: int
    bos: int | None
    eos: int | None
    begin: tuple[int, ...] = ()
    clean: Callable[[str], str] | None = None
    strip: bool = True
    further_ends: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """See `Tokenizer`."""
        return ends_of(self.eos, self.further_ends)

    def encode(self, text: str) -> list[int]:
        """The ids of the text alone."""
        return self.fast.encode(self.clean(text) if self.clean else text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids before the first that ends."""
        text = self.fast.decode(before_end(ids, self.bos, self.ends), skip_special_tokens=True)
        return text.strip() if self.strip else text


def add_tokens(fast: tokenizers.Tokenizer, added: Sequence[str], field: str) -> int:
    """Adds tokens that stand for themselves wherever they are written, with the next free ids; the new size.

    A token that is there already keeps its id. Raises `InputError` where one is empty.
    """
    if not all(added):
        raise InputError(f"opening a tokenizer: an added token is empty, in {list(added)}; change its field {field}")
    fast.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in added])
    return 1 + max(fast.get_vocab(with_added_tokens=True).values())


def mark(fast: tokenizers.Tokenizer, token: str, path: str, field: str) -> int:
    """The id of a token; raises `InputError` where there is none."""
    found = fast.token_to_id(token)
    if found is None:
        special = [added.content for added in fast.get_added_tokens_decoder().values()]
        raise InputError(
            f"opening the tokenizer {path}: it has no token {token!r}; {nearest(token, special)} "
            f"change the tokenizer's field {field}"
        )
    return found


def put_before(fast: tokenizers.Tokenizer, token: str) -> None:
    """Tells the tokenizer that this mark begins a text; a tokenizer.json then says so, too."""
    found = fast.token_to_id(token)
    fast.post_processor = processors.TemplateProcessing(single=[token, "$A"], special_tokens=[(token, found)])


def marks_before(fast: tokenizers.Tokenizer) -> tuple[int, ...]:
    """What the tokenizer itself (its "post-processor") puts before a text."""
    found = fast.encode("a")
    marks = itertools.takewhile(lambda pair: pair[1], zip(found.ids, found.special_tokens_mask, strict=True))
    return tuple(i for i, _ in marks)


def ends_of(eos: int | None, further: tuple[int, ...]) -> tuple[int, ...]:
    """The mark of the end, where there is one, and what else ends a text."""
    return tuple(dict.fromkeys((*(() if eos is None else (eos,)), *further)))


def before_end(ids: Iterable[int], bos: int | None, ends: Collection[int]) -> list[int]:
    """The ids after a mark of the beginning (which may be the same as one of the end) and before the end."""
    ids = [int(i) for i in ids]
    if ids and ids[0] == bos:
        del ids[0]
    return [i for i in itertools.takewhile(lambda i: i not in ends, ids) if i != bos]


def read(path: str, field: str) -> bytes:
    """The file; raises `InputError` where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"opening the tokenizer file {path!r}: {error.strerror or error}; give a file that is there in the "
            f"tokenizer's field {field}"
        ) from None


def wrong_file(path: str, field: str, wanted: str, reason: object) -> InputError:
    """The error for a file that is something else."""
    return InputError(f"opening the tokenizer file {path!r}: it is not {wanted} ({reason}); change the tokenizer's "
                      f"field {field}")  # fmt: skip
