"""What happens to a text before it becomes tokens, as BLIP does it: small letters, no signs, not too many words.

Junnan Li and others, BLIP, ICML 2022: `pre_caption` and `pre_question` of the public code. A transform is called on a
text; `Cleaned` is a source whose texts have gone through one, for a preprocess that does not call it itself.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Protocol, runtime_checkable

from vlmax.data.example import BadRecord, Example, Reader, Source
from vlmax.errors import InputError

_SIGNS = re.compile(r'[.!"()*#:;~]')
_SPACES = re.compile(r"\s{2,}")


@runtime_checkable
class Cleaning(Protocol):
    """A pure function of a text. Frozen and picklable."""

    def __call__(self, text: str) -> str:
        """The text as the model reads it; it may be empty."""
        ...


def _check(words: int) -> None:
    if words < 1:
        raise InputError(f"cleaning texts: words is {words}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class CleanCaption:
    """BLIP's captions: small letters, each of `.!"()*#:;~` a space, no double spaces, the first words.

    Raises:
      InputError: `words` is below 1.
    """

    words: int = 30
    """The most words that are kept; BLIP takes 30 in pretraining and in its fine-tunings."""

    def __post_init__(self):
        _check(self.words)

    def __call__(self, text: str) -> str:
        """See `Cleaning`."""
        return _first_words(_SPACES.sub(" ", _SIGNS.sub(" ", text.lower())).rstrip("\n").strip(" "), self.words)


@dataclasses.dataclass(frozen=True)
class CleanQuestion:
    """BLIP's questions: small letters, `.!"()*#:;~` left out, no spaces at the end, the first words.

    Raises:
      InputError: `words` is below 1.
    """

    words: int = 50
    """The most words that are kept."""

    def __post_init__(self):
        _check(self.words)

    def __call__(self, text: str) -> str:
        """See `Cleaning`."""
        return _first_words(_SIGNS.sub("", text.lower()).rstrip(" "), self.words)


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """A source with cleaned texts; a text of which nothing is left is dropped, and a record without any is damaged."""

    source: Source
    clean: Cleaning = CleanCaption()

    @property
    def name(self) -> str:
        """The source's own name."""
        return self.source.name

    def open(self) -> Reader:
        """Opens the source."""
        return CleanedReader(self.source.open(), self.clean)


@dataclasses.dataclass(frozen=True)
class CleanedReader:
    """Random access to the examples with cleaned texts."""

    reader: Reader
    clean: Cleaning

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`; raises `BadRecord` where cleaning leaves nothing of its texts."""
        example = self.reader[index]
        texts = tuple(text for text in map(self.clean, example.texts) if text.strip())
        if example.texts and not texts:
            error = BadRecord("no word is left of its texts")
            error.key = example.key
            raise error
        return dataclasses.replace(example, texts=texts)


def _first_words(text: str, most: int) -> str:
    words = text.split(" ")
    return text if len(words) <= most else " ".join(words[:most])
