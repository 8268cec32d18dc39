"""Text to token ids. A frozen configuration names the files; `open()` reads them and gives the tokenizer.

`encode` gives the ids of the text alone; `to_fixed` puts the marks of begin and end round them, cuts and pads.
A tokenizer is picklable, so that it is opened once and travels into worker processes.
"""

from __future__ import annotations

import dataclasses
import gzip
import html
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import ftfy
import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Int32
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from vlmax.data.example import BadRecord, Source
from vlmax.errors import InputError, nearest

CLIP_MERGES = 49_152 - 256 - 2
CLIP_MARKS = ("<|startoftext|>", "<|endoftext|>")
CLIP_WORDS = r"(?i:<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
TRAINED_MARKS = ("<pad>", "<bos>", "<eos>")


@runtime_checkable
class Tokenizer(Protocol):
    """Turns text into ids and back.

    Attributes:
      vocab_size: ids are 0 to vocab_size - 1, marks included; an embedding must have at least as many rows.
      pad_id: what fills a row after the text.
      bos: the mark of the beginning, or None.
      eos: the mark of the end, or None.
    """

    vocab_size: int
    pad_id: int
    bos: int | None
    eos: int | None

    def encode(self, text: str) -> list[int]:
        """The ids of the text alone, without marks."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids before the first end mark; the mark of the beginning is left out."""
        ...


@runtime_checkable
class TokenizerConfig(Protocol):
    """What an experiment holds: a frozen dataclass."""

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where its file is missing or is something else."""
        ...


@dataclasses.dataclass(frozen=True)
class ClipBpe:
    """CLIP's byte-pair encoding of lower-cased text, from its public merges file.

    Text is cleaned as OpenAI's code does: broken encodings mended (ftfy), HTML entities resolved twice, white space
    made single. 49,408 ids, begin 49406, end 49407 (the highest, which the text encoder looks for), padding 0.

    Attributes:
      path: `bpe_simple_vocab_16e6.txt.gz`.
    """

    path: str

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where the file is missing or is not CLIP's merges file."""
        try:
            lines = gzip.decompress(_read(self.path, "ClipBpe.path")).decode("utf-8").split("\n")
        except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
            raise _wrong_file(self.path, "ClipBpe.path", "CLIP's bpe_simple_vocab_16e6.txt.gz", error) from None
        merges = [(m[0], m[1]) for m in map(str.split, lines[1 : CLIP_MERGES + 1]) if len(m) == 2]
        if len(merges) != CLIP_MERGES:
            reason = f"it has {len(merges)} merges, not {CLIP_MERGES}"
            raise _wrong_file(self.path, "ClipBpe.path", "CLIP's bpe_simple_vocab_16e6.txt.gz", reason)
        letters = _byte_letters()
        words = [*letters, *(letter + "</w>" for letter in letters), *("".join(m) for m in merges), *CLIP_MARKS]
        vocabulary = {word: i for i, word in enumerate(words)}
        bpe = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
        bpe.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
        bpe.add_special_tokens(list(CLIP_MARKS))
        bpe.decoder = decoders.Sequence([decoders.Replace("</w>", "Ġ"), decoders.ByteLevel()])
        bos, eos = (vocabulary[mark] for mark in CLIP_MARKS)
        return BpeTokenizer(bpe, len(words), 0, bos, eos, clip_clean)


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model: T5, SigLIP, LLaMA.

    Attributes:
      path: the `.model` file.
      pad: the padding id, where it is not the model's own: SigLIP pads with its end mark, 1.
    """

    path: str
    pad: int | None = None

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where the file is missing or no model, or there is no padding id."""
        data = _read(self.path, "SentencePiece.path")
        try:
            processor = sentencepiece.SentencePieceProcessor()
            processor.load_from_serialized_proto(data)
            if not data:
                raise ValueError("it is empty")
        except (RuntimeError, ValueError) as error:
            raise _wrong_file(self.path, "SentencePiece.path", "a SentencePiece model", error) from None
        bos, eos, pad = (i if i >= 0 else None for i in (processor.bos_id(), processor.eos_id(), processor.pad_id()))
        pad = pad if self.pad is None else self.pad
        if pad is None or not 0 <= pad < len(processor):
            raise InputError(
                f"opening the tokenizer {self.path}: its padding id is {pad}; give one of its ids, 0 to "
                f"{len(processor) - 1}, in the tokenizer's field SentencePiece.pad"
            )
        return PieceTokenizer(processor, len(processor), pad, bos, eos)


@dataclasses.dataclass(frozen=True)
class TokenizerJson:
    """A Hugging Face `tokenizer.json`.

    Attributes:
      path: the file.
      pad: the padding token as it is written there.
      bos: the token of the beginning, or None.
      eos: the token of the end, or None.
    """

    path: str
    pad: str
    bos: str | None = None
    eos: str | None = None

    def open(self) -> Tokenizer:
        """The tokenizer; raises `InputError` where the file is missing or something else, or a token is not in it."""
        data = _read(self.path, "TokenizerJson.path")
        try:
            fast = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise _wrong_file(self.path, "TokenizerJson.path", "a tokenizer.json", error) from None
        fast.no_padding()
        fast.no_truncation()

        def mark(field: str, token: str) -> int:
            found = fast.token_to_id(token)
            if found is None:
                special = [t.content for t in fast.get_added_tokens_decoder().values()]
                raise InputError(
                    f"opening the tokenizer {self.path}: it has no token {token!r}; {nearest(token, special)} "
                    f"change the tokenizer's field TokenizerJson.{field}"
                )
            return found

        bos, eos = (None if t is None else mark(f, t) for f, t in (("bos", self.bos), ("eos", self.eos)))
        size = 1 + max(fast.get_vocab(with_added_tokens=True).values())
        return BpeTokenizer(fast, size, mark("pad", self.pad), bos, eos)


@dataclasses.dataclass(frozen=True)
class TrainedBpe:
    """A byte-level BPE of lower-cased text, trained at the start on a source's own texts: no file is needed.

    The same source gives the same tokenizer on every host. Padding, begin and end are the three highest ids, the end
    the very highest, as CLIP's text encoder wants it.

    Attributes:
      source: where the texts are.
      examples: how many of its first examples to train on.
      vocab_size: how many ids, at least 259 (256 bytes and three marks); ids that training does not need stay unused.
    """

    source: Source
    examples: int = 2_000
    vocab_size: int = 512

    def open(self) -> Tokenizer:
        """Trains the tokenizer; raises `InputError` where the source has no texts or `vocab_size` is too small."""
        reader = self.source.open()
        texts: list[str] = []
        for index in range(min(self.examples, len(reader))):
            try:
                texts.extend(reader[index].texts)
            except BadRecord:  # the pipeline reports it when it comes to it; the tokenizer learns without it
                continue
        fast = _train(texts, self.vocab_size, f"the first {self.examples} examples of {self.source.name!r}")
        pad, bos, eos = range(self.vocab_size - len(TRAINED_MARKS), self.vocab_size)
        return BpeTokenizer(fast, self.vocab_size, pad, bos, eos)


def train_bpe(texts: Iterable[str], vocab_size: int, path: str | Path) -> TokenizerJson:
    """Trains `TrainedBpe`'s tokenizer on texts, writes it to `path` and gives the configuration that opens it.

    The order of the texts makes no difference. Raises `InputError` where there is no text, or `vocab_size` < 259.
    """
    Path(path).write_text(_train(list(texts), vocab_size, "the texts given").to_str(), encoding="utf-8")
    return TokenizerJson(str(path), *TRAINED_MARKS)


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
class BpeTokenizer:
    """A `Tokenizer` on Hugging Face's `tokenizers`; `clean` prepares a text before it."""

    fast: tokenizers.Tokenizer
    vocab_size: int
    pad_id: int
    bos: int | None
    eos: int | None
    clean: Callable[[str], str] | None = None

    def encode(self, text: str) -> list[int]:
        """The ids of the text alone."""
        return self.fast.encode(self.clean(text) if self.clean else text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids before the first end mark."""
        return self.fast.decode(_before_end(ids, self.bos, self.eos), skip_special_tokens=True).strip()


@dataclasses.dataclass
class PieceTokenizer:
    """A `Tokenizer` on SentencePiece."""

    processor: sentencepiece.SentencePieceProcessor
    vocab_size: int
    pad_id: int
    bos: int | None
    eos: int | None

    def encode(self, text: str) -> list[int]:
        """The ids of the text alone."""
        return self.processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids before the first end mark."""
        return self.processor.decode(_before_end(ids, self.bos, self.eos))


def clip_clean(text: str) -> str:
    """The text as CLIP's tokenizer sees it: mended, without entities, in single spaces and lower case."""
    if not (text.isascii() and text.isprintable()) or "&" in text:  # nothing to mend otherwise, and ftfy is slow
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


def _before_end(ids: Iterable[int], bos: int | None, eos: int | None) -> list[int]:
    ids = [int(i) for i in ids]
    end = ids.index(eos) if eos in ids else len(ids)
    return [i for i in ids[:end] if i != bos]


def _byte_letters() -> list[str]:
    """A printable letter for each byte, in CLIP's and GPT-2's order: those that print as they are come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]


def _train(texts: list[str], vocab_size: int, what: str) -> tokenizers.Tokenizer:
    least = 256 + len(TRAINED_MARKS)
    if vocab_size < least:
        raise InputError(f"training a tokenizer: vocab_size is {vocab_size}; it must be at least {least}, 256 bytes "
                         "and three marks; change the tokenizer's field vocab_size")  # fmt: skip
    if not any(text.strip() for text in texts):
        raise InputError(f"training a tokenizer: {what} have no text; change the tokenizer's source or its examples")
    trained = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(TRAINED_MARKS), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    trained.train_from_iterator(texts, trainer)
    learnt = json.loads(trained.to_str())["model"]
    unused = range(len(learnt["vocab"]), vocab_size - len(TRAINED_MARKS))
    vocabulary = learnt["vocab"] | {f"<unused {i}>": i for i in unused}
    fast = _byte_level(models.BPE(vocabulary, [tuple(merge) for merge in learnt["merges"]]))
    fast.add_special_tokens(list(TRAINED_MARKS))  # they get the ids after the vocabulary
    return fast


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    fast = tokenizers.Tokenizer(model)
    fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    fast.decoder = decoders.ByteLevel()
    return fast


def _read(path: str, field: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"opening the tokenizer file {path!r}: {error.strerror or error}; give a file that is there in the "
            f"tokenizer's field {field}"
        ) from None


def _wrong_file(path: str, field: str, wanted: str, reason: object) -> InputError:
    return InputError(f"opening the tokenizer file {path!r}: it is not {wanted} ({reason}); change the tokenizer's "
                      f"field {field}")  # fmt: skip
