"""A picture and a text about it, for a language model that reads both: what it is given, and what it learns to write.

What the text is comes from the example: one of its captions after a fixed prompt (`CaptionAfter`), or the answer to its
question (`AnswerTo`). A decoder reads prompt and answer in a row and learns the answer (`ImagePrompt`); an
encoder-decoder reads the first and writes the second (`ImagePair`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32

from vlmax.data.example import BadRecord, Example, Feature, Features
from vlmax.data.images import ImageTransform
from vlmax.data.preprocess import ImageOnly
from vlmax.data.texts import IGNORED, PackedPairs, parted
from vlmax.data.tokenizers import Tokenizer, TokenizerConfig, to_fixed
from vlmax.errors import InputError


class Asked(NamedTuple):
    """What is said about a picture.

    Attributes:
      prompt: what the language model is given; it may be empty.
      answer: what it learns to write.
    """

    prompt: str
    answer: str


@dataclasses.dataclass(frozen=True)
class CaptionAfter:
    """One of the example's captions, after the same prompt in each."""

    prompt: str = ""
    """Without a space at its end; "a photo of" where BLIP-2 is fine-tuned on captions."""
    choose: Literal["random", "first"] = "random"
    """Which of an example's captions is taken."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Asked:
        """Raises `BadRecord` where there is no caption."""
        if not example.texts:
            raise BadRecord("no caption")
        place = int(rng.integers(len(example.texts))) if self.choose == "random" else 0
        return Asked(self.prompt, example.texts[place])


@dataclasses.dataclass(frozen=True)
class AnswerTo:
    """The answer to the example's question: the fields `question` and `answers`, what each annotator said.

    Raises:
      InputError: a prompt without a place for the question.
    """

    prompt: str = "Question: {} Answer:"
    """With {} for the question, and without a space at its end."""
    choose: Literal["random", "first"] = "random"
    """random: what one of the annotators said, so that answers are learned as often as they were given."""

    def __post_init__(self):
        if self.prompt.count("{}") != 1:
            raise InputError(f"data.preprocess.asks.prompt is {self.prompt!r}; it must have one {{}} for the question")

    def __call__(self, example: Example, rng: np.random.Generator) -> Asked:
        """Raises `BadRecord` where there is no answer, `InputError` where the source has no such fields."""
        question, answers = (example.fields.get(name) for name in ("question", "answers"))
        if not isinstance(question, str) or not isinstance(answers, Sequence) or isinstance(answers, str):
            raise InputError(
                f"reading record {example.key!r}: data.preprocess.asks reads the fields question and answers, and the "
                f"record has {', '.join(sorted(example.fields)) or '(none)'}; take a source with questions and answers"
            )
        given = [str(answer) for answer in answers if str(answer).strip()]
        if not question.strip() or not given:
            raise BadRecord("no answer" if question.strip() else "no question")
        answer = given[int(rng.integers(len(given)))] if self.choose == "random" else given[0]
        return Asked(self.prompt.replace("{}", question), answer)


Asks = CaptionAfter | AnswerTo


@dataclasses.dataclass(frozen=True)
class Instruction:
    """The prompt as a Q-Former reads it: the feature `instruction`, int32 `[length]`, cut off at its end."""

    tokenizer: TokenizerConfig
    """The Q-Former's, BERT's: another than that of the language model."""
    length: int = 32
    """Tokens with their marks and padding."""

    @functools.cached_property
    def opened(self) -> Tokenizer:
        """The tokenizer, opened once."""
        return self.tokenizer.open()

    def fixed(self, text: str) -> tuple[Int32[np.ndarray, "length"], bool]:
        """The tokens of a text, and whether it was cut off."""
        tokenizer = self.opened
        return to_fixed(tokenizer.encode(text), self.length, tokenizer.pad_id, tokenizer.bos, tokenizer.eos)


@dataclasses.dataclass(frozen=True)
class ImagePrompt:
    """For a decoder: `image` uint8 `[size, size, 3]`; `text`, `labels` and `segments` int32 `[length]`.

    `text` is the mark of the beginning, prompt, answer and end, padded at the right; `labels` what each place predicts:
    the answer and its end alone. `segments` is 1, and 0 for padding. An answer that finds no room is cut off at its
    end, without a mark, and counted as `truncated`.
    """

    image: ImageTransform
    """What happens to the picture."""
    tokenizer: TokenizerConfig
    """That of the language model."""
    length: int = 32
    """T, tokens of a text."""
    asks: Asks = CaptionAfter()
    """What is said about a picture."""
    end: str | None = None
    """The text that ends an answer; None: the tokenizer's mark of the end. BLIP-2's OPT ends at a line break."""
    instruction: Instruction | None = None
    """How the Q-Former reads the prompt; None: it does not."""

    @functools.cached_property
    def opened(self) -> Tokenizer:
        """The tokenizer, opened once; it travels along into worker processes."""
        return self.tokenizer.open()

    def features(self) -> Mapping[str, Feature]:
        """What `__call__` gives; raises `InputError` where a tokenizer cannot be opened, or nothing ends an answer."""
        if self.length < 2:
            raise InputError(f"data.preprocess.length is {self.length}; it must be at least 2")
        if not self._end():
            raise InputError(
                f"data.preprocess.end is {self.end!r}, and the tokenizer makes no token of it; name a text that ends "
                "an answer, or a tokenizer with a mark of the end"
            )
        texts = {name: Feature((self.length,), "int32", ("tokens",)) for name in ("text", "labels", "segments")}
        return {**_picture_features(self.image, self.instruction), **texts}

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """The features; raises `BadRecord` where there is no picture or no text, or it cannot be decoded."""
        asked, tokenizer = self.asks(example, rng), self.opened
        prompt, answer = parted(tokenizer, asked.prompt, asked.answer)
        if not answer:
            raise BadRecord("no answer")
        before = [*([] if tokenizer.bos is None else [tokenizer.bos]), *prompt]
        if len(before) >= self.length:
            raise BadRecord(f"a prompt of {len(before)} tokens leaves no room for an answer in {self.length}")
        ids = np.asarray([*before, *answer, *self._end()], np.int32)
        tokens, labels = ids[:-1][: self.length], ids[1:][: self.length].copy()
        labels[: max(len(before) - 1, 0)] = IGNORED
        missing = (0, self.length - len(tokens))
        cut = len(ids) - 1 > self.length
        return {
            **_picture(self.image, self.instruction, example, asked, rng),
            "text": np.pad(tokens, missing, constant_values=tokenizer.pad_id),
            "labels": np.pad(labels, missing, constant_values=IGNORED),
            "segments": np.pad(np.ones_like(tokens), missing),
            "count/truncated": np.asarray(cut, np.int32),
        }

    def tokenize(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Texts as the model reads them."""
        tokenizer = self.opened
        rows = [to_fixed(tokenizer.encode(text), self.length, tokenizer.pad_id, tokenizer.bos)[0] for text in texts]
        return np.stack(rows)

    def detokenize(self, tokens: Int32[np.ndarray, "n length"]) -> list[str]:
        """The texts that tokens stand for."""
        pad = self.opened.pad_id
        return [self.opened.decode([token for token in row if token != pad]) for row in tokens.tolist()]

    def _end(self) -> list[int]:
        eos = self.opened.eos
        return self.opened.encode(self.end) if self.end is not None else [] if eos is None else [eos]


@dataclasses.dataclass(frozen=True)
class ImagePair:
    """For an encoder-decoder: `image`, and the features of `PackedPairs`, one text a row.

    With `learn="answer"` the encoder reads the prompt and the decoder writes the answer. With `learn="all"` there is no
    prompt: the answer is parted at a random token, the prefix language model of BLIP-2's second stage.
    """

    image: ImageTransform
    """What happens to the picture."""
    pairs: PackedPairs
    """What happens to the text."""
    asks: Asks = CaptionAfter()
    """What is said about a picture."""
    instruction: Instruction | None = None
    """How the Q-Former reads the prompt; None: it does not."""

    @property
    def opened(self) -> Tokenizer:
        """The language model's tokenizer."""
        return self.pairs.opened

    def features(self) -> Mapping[str, Feature]:
        """What `__call__` gives; raises `InputError` where a tokenizer cannot be opened, or `pairs` makes no sense."""
        if self.pairs.documents != 1:
            told = f"data.preprocess.pairs.documents is {self.pairs.documents}"
            raise InputError(f"{told}; set it to 1, a picture has one")
        if self.pairs.learn == "all" and self.asks.prompt:
            raise InputError(
                "data.preprocess.pairs.learn is 'all', so that no prompt is read; set learn to 'answer', or "
                "data.preprocess.asks.prompt to ''"
            )
        return {**_picture_features(self.image, self.instruction), **self.pairs.features()}

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """The features; raises `BadRecord` where there is no picture or no text, or it cannot be decoded."""
        asked = self.asks(example, rng)
        document = Example(example.key, None, (asked.answer,), {"prompt": asked.prompt, "answer": asked.answer})
        return {**_picture(self.image, self.instruction, example, asked, rng), **self.pairs(document, rng)}


def _picture_features(image: ImageTransform, instruction: Instruction | None) -> Mapping[str, Feature]:
    """What picture and instruction are."""
    found = dict(ImageOnly(image).features())
    if instruction is None:
        return found
    instruction.fixed("")
    return {**found, "instruction": Feature((instruction.length,), "int32", ("tokens",))}


def _picture(
    image: ImageTransform, instruction: Instruction | None, example: Example, asked: Asked, rng: np.random.Generator
) -> Features:
    """Picture and instruction of an example."""
    found = ImageOnly(image)(example, rng)
    if instruction is None:
        return found
    tokens, cut = instruction.fixed(asked.prompt)
    return {**found, "instruction": tokens, "count/instruction_truncated": np.asarray(cut, np.int32)}
