"""Two pictures and a statement about them, as BLIP is fine-tuned on NLVR2 (Li et al. 2022, section 5.4)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from vlmax.data.example import BadRecord, Example, Feature, Features
from vlmax.data.images import ImageTransform
from vlmax.data.preprocess import ImageOnly
from vlmax.data.tokenizers import Tokenizer, TokenizerConfig, to_fixed
from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ImagePairs:
    """Reads the fields `second_image` and `label`, as `NLVR2` has them, and the first text.

    Features: `image` and `second_image` uint8 `[size, size, 3]`, transformed apart; `text` int32 `[length]` with the
    marks of begin and end; `label` int32, 1 where the statement is true, else 0. A statement that does not fit is cut
    off at its end and counted as `truncated`.
    """

    image: ImageTransform
    """What happens to each picture."""
    tokenizer: TokenizerConfig
    """What makes tokens of the statement."""
    length: int = 50
    """T, tokens of a statement with its marks and padding."""

    @functools.cached_property
    def opened(self) -> Tokenizer:
        """The tokenizer, opened once; it travels along into worker processes."""
        return self.tokenizer.open()

    def features(self) -> Mapping[str, Feature]:
        """What `__call__` gives; raises `InputError` where the tokenizer cannot be opened or `length` is too short."""
        self.tokenize([""])
        picture = ImageOnly(self.image).features()["image"]
        text = Feature((self.length,), "int32", ("tokens",))
        return {"image": picture, "second_image": picture, "text": text, "label": Feature((), "int32")}

    def __call__(self, example: Example, rng: np.random.Generator) -> Features:
        """The features; raises `BadRecord` where a picture or the statement is missing or damaged."""
        second, label = (example.fields.get(name) for name in ("second_image", "label"))
        if label not in (0, 1) or not isinstance(second, bytes | np.ndarray):
            raise InputError(
                f"reading record {example.key!r}: data.preprocess reads the fields second_image and label (0 or 1), "
                f"and the record has {', '.join(sorted(example.fields)) or '(none)'}; take a source of pairs, as NLVR2"
            )
        if not example.texts or not example.texts[0].strip():
            raise BadRecord("no statement")
        text, truncated = self._fixed(example.texts[0])
        return {
            **ImageOnly(self.image)(example, rng),
            "second_image": self.image(second, rng),
            "text": text,
            "label": np.asarray(label, np.int32),
            "count/truncated": np.asarray(truncated, np.int32),
        }

    def tokenize(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Statements as the model reads them."""
        return np.stack([self._fixed(text)[0] for text in texts])

    def detokenize(self, tokens: Int32[np.ndarray, "n length"]) -> list[str]:
        """The texts that tokens stand for."""
        return [self.opened.decode(row.tolist()) for row in tokens]

    def _fixed(self, text: str) -> tuple[Int32[np.ndarray, "length"], bool]:
        tokenizer = self.opened
        return to_fixed(tokenizer.encode(text), self.length, tokenizer.pad_id, tokenizer.bos, tokenizer.eos)
