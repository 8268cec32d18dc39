"""BLEU (Papineni et al. 2002) as coco-caption computes it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vlmax.data.example import Example
from vlmax.evaluation.scores.captions import Captions, Scored

SMALL, TINY = 1e-9, 1e-15
"""What the reference adds to divisors and dividends: why a caption without a single 4-gram scores 1e-4 and not 0."""


@dataclasses.dataclass(frozen=True)
class Bleu:
    """`bleu_1` to `bleu_4`; of a corpus from its counts as a whole, with the reference that is closest in length."""

    def check(self) -> None:
        """Needs nothing."""

    def reads(self, example: Example) -> None:
        """The texts are enough."""

    def score(self, captions: Captions, facts: Sequence[Any]) -> dict[str, Scored]:
        """The four scores."""
        return bleu(captions.tokens, captions.reference_tokens)


def bleu(written: Sequence[str], references: Sequence[Sequence[str]], order: int = 4) -> dict[str, Scored]:
    """Scores of tokenized texts, `bleu_1` to `bleu_<order>`.

    Args:
      written: tokens parted by white space.
      references: of each text, at least one.
      order: of the longest n-grams.
    """
    counts = np.array([_counts(text, texts, order) for text, texts in zip(written, references, strict=True)])
    whole, each = _scores(counts.sum(axis=0)[None])[0], _scores(counts)
    return {f"bleu_{n + 1}": Scored(float(whole[n]), each[:, n]) for n in range(order)}


def _counts(text: str, references: Sequence[str], order: int) -> Int[np.ndarray, " numbers"]:
    """Length, length of the closest reference, then n-grams that could be and that are right, for each n."""
    words, others = text.split(), [other.split() for other in references]
    closest = min((abs(len(other) - len(words)), len(other)) for other in others)[1]
    possible = [max(0, len(words) - n) for n in range(order)]
    right = []
    for n in range(1, order + 1):
        most: collections.Counter[tuple[str, ...]] = collections.Counter()
        for other in others:
            most |= ngrams(other, n)
        right.append(sum((ngrams(words, n) & most).values()))
    return np.array([len(words), closest, *possible, *right])


def _scores(counts: Int[np.ndarray, "rows numbers"]) -> Float[np.ndarray, "rows order"]:
    order = (counts.shape[1] - 2) // 2
    length, closest = counts[:, :1], counts[:, 1:2]
    possible, right = counts[:, 2 : 2 + order], counts[:, 2 + order :]
    means = np.cumprod((right + TINY) / (possible + SMALL), axis=1) ** (1 / np.arange(1, order + 1))
    ratio = (length + TINY) / (closest + SMALL)
    return means * np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)


def ngrams(words: Sequence[str], n: int) -> collections.Counter[tuple[str, ...]]:
    """How often each sequence of n words occurs."""
    return collections.Counter(zip(*(words[i:] for i in range(n)), strict=False))
