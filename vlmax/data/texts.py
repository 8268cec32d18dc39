"""From texts to the features of language models: packed rows of tokens, what is learned at each place, segment ids.

What a place predicts is decided here: `labels` holds the token that comes next in the document, or IGNORED. A document
begins and ends with the tokenizer's marks, where it has them, and the mark of the end is predicted, too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vlmax.data import packing
from vlmax.data.example import BadRecord, Example, Feature, Features
from vlmax.data.tokenizers import Tokenizer, TokenizerConfig
from vlmax.errors import InputError

IGNORED = -100
"""The label of a place that is not learned, as in torch."""

Learn = Literal["all", "answer"]


@dataclasses.dataclass(frozen=True)
class PackedText:
    """Texts for a decoder that reads nothing else: `tokens`, `labels` and `segments`, int32 `[length]`.

    A row holds several documents, 1, 2, ... in `segments`, which is 0 where there is padding. The last document of a
    row is cut off at its end (`cut`), and the next ones are `left_out`. Of a document longer than a row a piece from a
    random place is taken (`truncated`).
    """

    tokenizer: TokenizerConfig
    """What makes tokens of the texts."""
    length: int = 2048
    """Tokens of a row."""
    documents: int = 1
    """Examples that are read for a row: its length over that of a document, and somewhat more."""
    learn: Learn = "all"
    """all: every token of one of the texts; answer: of the fields `prompt` and `answer`, which are read one after the
    other, the tokens of the answer."""

    @functools.cached_property
    def opened(self) -> Tokenizer:
        """The tokenizer, opened once; it travels along into worker processes."""
        return self.tokenizer.open()

    def features(self) -> Mapping[str, Feature]:
        """What a row is; raises `InputError` where the tokenizer cannot be opened or a size is below 1."""
        _check(self.documents, length=(self.length, 1))
        assert self.opened
        return {name: Feature((self.length,), "int32", ("tokens",)) for name in ("tokens", "labels", "segments")}

    def document(self, example: Example, rng: np.random.Generator) -> Features:
        """The tokens of one document and what each predicts; raises `BadRecord` where it has none."""
        tokenizer = self.opened
        prompt, answer = _parts(tokenizer, example, self.learn, rng)
        ids = _marked(prompt + answer, tokenizer.bos, tokenizer.eos)
        if len(ids) < 2:
            raise BadRecord("a single token, which predicts nothing")
        tokens, labels = ids[:-1], ids[1:].copy()
        if self.learn == "answer":
            labels[: max(len(prompt) + (tokenizer.bos is not None) - 1, 0)] = IGNORED
        beyond = max(len(tokens) - self.length, 0)
        start = int(rng.integers(beyond + 1)) if self.learn == "all" else beyond  # the answer is at the end
        piece = slice(start, start + self.length)
        return {"tokens": tokens[piece], "labels": labels[piece], "count/truncated": np.asarray(beyond > 0, np.int32)}

    def pack(self, documents: Sequence[Features]) -> Features:
        """One row."""
        places = packing.spans([len(d["tokens"]) for d in documents], self.length)
        return {
            "tokens": packing.lay([d["tokens"] for d in documents], places, self.length, self.opened.pad_id),
            "labels": packing.lay([d["labels"] for d in documents], places, self.length, IGNORED),
            "segments": packing.segments(places, self.length),
            **_counts(documents, "tokens", places),
        }

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """A row of one document."""
        return self.pack([self.document(example, rng)])


@dataclasses.dataclass(frozen=True)
class PackedPairs:
    """Texts in two parts, for an encoder that reads the first and a decoder that learns to write the second.

    Features, int32: `inputs` and `input_segments` `[inputs]`, `targets`, `labels` and `target_segments` `[length]`;
    `targets` is what the decoder reads, `labels` what it predicts, so the former are the latter shifted, with the
    padding token at the start of each, as in T5. Packed as in `PackedText`, but inputs are never cut: a row ends before
    the document whose input finds no room.

    A text is parted at a random token: the prefix language model of Raffel et al. 2020 (section 3.3.1), as BLIP-2
    trains its T5 (Li et al. 2023, section 3.3). Unlike spans of noise it needs no sentinels in the vocabulary, and what
    is learned, to go on with a text, is what a vision-language model asks of its frozen T5.
    """

    tokenizer: TokenizerConfig
    """What makes tokens of the texts; it must have a mark of the end."""
    inputs: int = 512
    """Tokens of a row of inputs."""
    length: int = 512
    """Tokens of a row of targets."""
    documents: int = 1
    """Examples that are read for a row."""
    learn: Learn = "all"
    """all: the second part of one of the texts; answer: the field `answer`, after the field `prompt`."""

    @functools.cached_property
    def opened(self) -> Tokenizer:
        """The tokenizer, opened once; it travels along into worker processes."""
        return self.tokenizer.open()

    def features(self) -> Mapping[str, Feature]:
        """What a row is; raises `InputError` where the tokenizer cannot be opened, or it or a size does not fit."""
        _check(self.documents, inputs=(self.inputs, 2), length=(self.length, 2))
        if self.opened.eos is None:
            raise InputError(
                "data.preprocess.tokenizer has no mark of the end, with which inputs and targets must end; name one in "
                "the tokenizer's field eos"
            )
        sizes = {"inputs": self.inputs, "input_segments": self.inputs}
        sizes |= {"targets": self.length, "labels": self.length, "target_segments": self.length}
        return {name: Feature((size,), "int32", ("tokens",)) for name, size in sizes.items()}

    def document(self, example: Example, rng: np.random.Generator) -> Features:
        """Inputs, targets and labels of one document; raises `BadRecord` where there is nothing to learn."""
        tokenizer = self.opened
        prompt, answer = _parts(tokenizer, example, self.learn, rng)
        most = self.inputs - 1, self.length - 1  # beside the marks of the end
        if self.learn == "all":
            size = min(len(answer), sum(most))
            start = int(rng.integers(len(answer) - size + 1))
            cut = start + int(rng.integers(max(size - most[1], 0), min(size - 1, most[0]) + 1))
            first, second, truncated = answer[start:cut], answer[cut : start + size], size < len(answer)
        else:
            first, second = prompt[max(len(prompt) - most[0], 0) :], answer[: most[1]]
            truncated = len(first) < len(prompt) or len(second) < len(answer)
        labels = _marked(second, None, tokenizer.eos)
        return {
            "inputs": _marked(first, None, tokenizer.eos),
            "targets": np.concatenate([np.asarray([tokenizer.pad_id], np.int32), labels[:-1]]),
            "labels": labels,
            "count/truncated": np.asarray(truncated, np.int32),
        }

    def pack(self, documents: Sequence[Features]) -> Features:
        """One row."""
        inputs = [d["inputs"] for d in documents]
        inputs = inputs[: packing.fits([len(i) for i in inputs], self.inputs)]
        places = packing.spans([len(d["labels"]) for d in documents[: len(inputs)]], self.length)
        read = packing.spans([len(i) for i in inputs[: len(places)]], self.inputs)
        return {
            "inputs": packing.lay(inputs, read, self.inputs, self.opened.pad_id),
            "input_segments": packing.segments(read, self.inputs),
            "targets": packing.lay([d["targets"] for d in documents], places, self.length, self.opened.pad_id),
            "labels": packing.lay([d["labels"] for d in documents], places, self.length, IGNORED),
            "target_segments": packing.segments(places, self.length),
            **_counts(documents, "labels", places),
        }

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """A row of one document."""
        return self.pack([self.document(example, rng)])


def _parts(
    tokenizer: Tokenizer, example: Example, learn: Learn, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Prompt and answer, or nothing and one of the texts."""
    if learn == "all":
        text = example.texts[int(rng.integers(len(example.texts)))] if example.texts else ""
        ids = tokenizer.encode(text)
        if not ids:
            raise BadRecord("no text")
        return [], ids
    parts = [example.fields.get(name) for name in ("prompt", "answer")]
    if not all(isinstance(part, str) for part in parts):
        raise InputError(
            f"reading record {example.key!r}: data.preprocess.learn is 'answer', and the record has no texts in the "
            f"fields prompt and answer, but the fields {', '.join(sorted(example.fields)) or '(none)'}; set learn to "
            "'all', or take a source with these fields"
        )
    prompt, answer = parted(tokenizer, *map(str, parts))
    if not answer:
        raise BadRecord("no answer")
    return prompt, answer


def parted(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of the text that prompt and answer make with a space between them, parted where the answer begins.

    Raises:
      InputError: the tokenizer reads the end of the prompt otherwise where the answer follows.
    """
    if not prompt or not answer:
        return tokenizer.encode(prompt), tokenizer.encode(answer)
    first, whole = tokenizer.encode(prompt), tokenizer.encode(f"{prompt} {answer}")
    if whole[: len(first)] != first:
        raise InputError(
            f"the tokens of the prompt {prompt!r} are not the first of those of the prompt with an answer, "
            f"{answer[:40]!r}; end the prompt with a whole word or a sign, without a space"
        )
    return first, whole[len(first) :]


def _marked(ids: Sequence[int], bos: int | None, eos: int | None) -> packing.Tokens:
    return np.asarray([*([] if bos is None else [bos]), *ids, *([] if eos is None else [eos])], np.int32)


def _counts(documents: Sequence[Features], name: str, places: Sequence[packing.Span]) -> Features:
    """How many documents of a row are not whole in it."""
    cut = sum(stop - start < len(d[name]) for d, (start, stop) in zip(documents, places, strict=False))
    truncated = sum(int(d["count/truncated"]) for d in documents[: len(places)])
    found = {"cut": cut, "left_out": len(documents) - len(places), "truncated": truncated}
    return {f"count/{what}": np.asarray(count, np.int32) for what, count in found.items()}


def _check(documents: int, **sizes: tuple[int, int]) -> None:
    """Raises `InputError` for a size below its least."""
    for name, (size, least) in {"documents": (documents, 1), **sizes}.items():
        if size < least:
            raise InputError(f"data.preprocess.{name} is {size}; it must be at least {least}")
