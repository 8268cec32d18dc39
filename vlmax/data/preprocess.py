"""From an example to the features of contrastive training: pixels and tokens."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int32

from vlmax.data.example import BadRecord, Example, Feature, Features
from vlmax.data.images import ImageTransform
from vlmax.data.tokenizers import Tokenizer, TokenizerConfig, to_fixed
from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ImageText:
    """A picture with one of its captions: `image` uint8 `[size, size, 3]`, `text` int32 `[length]`.

    A caption that does not fit is cut off at its end, the end mark kept, and counted as `truncated`.
    """

    image: ImageTransform
    """What happens to the picture."""
    tokenizer: TokenizerConfig
    """What happens to the caption."""
    length: int = 77
    """Tokens of a text with its marks and padding."""
    choose: Literal["random", "first"] = "random"
    """Which of an example's captions is taken."""
    group: str | None = None
    """A field whose equal values make examples positives of each other: the feature `group` int32; None: no such."""

    @functools.cached_property
    def opened(self) -> Tokenizer:
        """The tokenizer, opened once; it travels along into worker processes."""
        return self.tokenizer.open()

    def features(self) -> Mapping[str, Feature]:
        """What `__call__` gives; raises `InputError` where the tokenizer cannot be opened or `length` is too short."""
        self.tokenize([""])
        found = {**ImageOnly(self.image).features(), "text": Feature((self.length,), "int32", ("tokens",))}
        return found if self.group is None else {**found, "group": Feature((), "int32")}

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """The features; raises `BadRecord` where there is no picture or caption, or it cannot be decoded."""
        if not example.texts:
            raise BadRecord("no caption")
        place = int(rng.integers(len(example.texts))) if self.choose == "random" else 0
        text, truncated = self._fixed(example.texts[place])
        found = {**ImageOnly(self.image)(example, rng), "text": text}
        if self.group is not None:
            found["group"] = _group(example, self.group)
        if truncated:
            found["count/truncated"] = np.asarray(1, np.int32)
        return found

    def tokenize(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Texts as the model reads them."""
        return np.stack([self._fixed(text)[0] for text in texts])

    def detokenize(self, tokens: Int32[np.ndarray, "n length"]) -> list[str]:
        """The texts that tokens stand for."""
        return [self.opened.decode(row.tolist()) for row in tokens]

    def _fixed(self, text: str) -> tuple[Int32[np.ndarray, "length"], bool]:
        tokenizer = self.opened
        return to_fixed(tokenizer.encode(text), self.length, tokenizer.pad_id, tokenizer.bos, tokenizer.eos)


@dataclasses.dataclass(frozen=True)
class ImageOnly:
    """A picture alone: `image` uint8 `[size, size, 3]`."""

    image: ImageTransform
    """What happens to the picture."""

    def features(self) -> Mapping[str, Feature]:
        """The name, shape and dtype that `__call__` gives."""
        size = self.image.size
        return {"image": Feature((size, size, 3), "uint8", ("height", "width", "channels"))}

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """The feature; raises `BadRecord` where there is no picture or it cannot be decoded."""
        if example.image is None:
            raise BadRecord("no image")
        return {"image": self.image(example.image, rng)}


def _group(example: Example, field: str) -> np.ndarray:
    """31 bits of the field's value: equal where the values are."""
    if field not in example.fields:
        raise InputError(
            f"reading record {example.key!r}: data.preprocess.group is {field!r}, and the record has the fields "
            f"{', '.join(sorted(example.fields)) or '(none)'}; name one of them, or None"
        )
    raw = hashlib.blake2b(repr(example.fields[field]).encode(), digest_size=4).digest()
    return np.asarray(int.from_bytes(raw, "little") >> 1, np.int32)
