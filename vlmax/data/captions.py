"""From a picture with captions to what a captioner learns: the caption after a prompt that is read and not learned."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int32

from vlmax.data.example import BadRecord, Example, Feature, Features
from vlmax.data.images import ImageTransform
from vlmax.data.preprocess import ImageOnly
from vlmax.data.texts import IGNORED
from vlmax.data.tokenizers import Tokenizer, TokenizerConfig, to_fixed
from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PromptedCaption:
    """A picture with one of its captions: `image` uint8 `[size, size, 3]`, `text` and `labels` int32 `[length]`.

    `text` is the mark of the beginning, prompt, caption, the mark of the end, padding. `labels` is what each place
    predicts, IGNORED where that belongs to the prompt or where nothing follows. A caption that does not fit is cut off
    at its end, the end mark kept, and counted as `truncated`.
    """

    image: ImageTransform
    """What happens to the picture."""
    tokenizer: TokenizerConfig
    """What makes tokens of prompt and caption."""
    length: int = 40
    """Tokens of a text with its marks and padding."""
    prompt: str = "a picture of "
    """What every caption goes on from; BLIP's."""
    choose: Literal["random", "first"] = "random"
    """Which of an example's captions is taken."""

    @functools.cached_property
    def opened(self) -> Tokenizer:
        """The tokenizer, opened once; it travels along into worker processes."""
        return self.tokenizer.open()

    def features(self) -> Mapping[str, Feature]:
        """What `__call__` gives; raises `InputError` where the tokenizer does not fit or `length` is too short."""
        tokenizer = self.opened
        if tokenizer.bos is None or tokenizer.eos is None:
            raise InputError(
                "data.preprocess.tokenizer lacks a mark of the beginning or of the end, between which a caption "
                "stands; take another"
            )
        if self.length < self._known + 2:
            raise InputError(
                f"data.preprocess.length is {self.length}; the prompt {self.prompt!r} with its marks and a word of a "
                f"caption takes {self._known + 2} tokens"
            )
        text = {name: Feature((self.length,), "int32", ("tokens",)) for name in ("text", "labels")}
        return {**ImageOnly(self.image).features(), **text}

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """The features; raises `BadRecord` where there is no picture or caption, or it cannot be decoded."""
        if not example.texts:
            raise BadRecord("no caption")
        place = int(rng.integers(len(example.texts))) if self.choose == "random" else 0
        text, truncated = self._fixed(example.texts[place])
        labels = np.append(text[1:], self.opened.pad_id).astype(np.int32)
        labels[labels == self.opened.pad_id] = IGNORED
        labels[: self._known - 1] = IGNORED
        found = {**ImageOnly(self.image)(example, rng), "text": text, "labels": labels}
        return {**found, "count/truncated": np.asarray(truncated, np.int32)}

    def tokenize(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Captions as the model reads them, after the prompt."""
        return np.stack([self._fixed(text)[0] for text in texts])

    def detokenize(self, tokens: Int32[np.ndarray, "n length"]) -> list[str]:
        """The texts that tokens stand for, the prompt included."""
        return [self.opened.decode(row.tolist()) for row in tokens]

    @functools.cached_property
    def _known(self) -> int:
        """Tokens that are read and not learned: the mark of the beginning and the prompt."""
        return 1 + len(self.opened.encode(self.prompt))

    def _fixed(self, caption: str) -> tuple[Int32[np.ndarray, "length"], bool]:
        tokenizer = self.opened
        # Apart, so that no token lies half in the prompt.
        ids = tokenizer.encode(self.prompt) + tokenizer.encode(caption)
        return to_fixed(ids, self.length, tokenizer.pad_id, tokenizer.bos, tokenizer.eos)
