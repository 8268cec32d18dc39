"""ROUGE-L (Lin 2004) as coco-caption computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmax.data.example import Example
from vlmax.evaluation.scores.captions import Captions, Scored

BETA = 1.2
"""Recall counts so many times as much as precision."""


@dataclasses.dataclass(frozen=True)
class RougeL:
    """`rouge_l`, the mean over images."""

    def check(self) -> None:
        """Needs nothing."""

    def reads(self, example: Example) -> None:
        """The texts are enough."""

    def score(self, captions: Captions, facts: Sequence[Any]) -> dict[str, Scored]:
        """The score."""
        return {"rouge_l": rouge_l(captions.tokens, captions.reference_tokens)}


def rouge_l(written: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    """The score of tokenized texts.

    Precision and recall are each the best over the references, which may be different ones, as in the reference
    implementation. It parts tokens at single spaces, so that an empty text has one token, the empty one.
    """
    each = np.array([_score(text, texts) for text, texts in zip(written, references, strict=True)])
    return Scored(float(each.mean()), each)


def _score(text: str, references: Sequence[str]) -> float:
    words, others = text.split(" "), [other.split(" ") for other in references]
    common = [longest_common(words, other) for other in others]
    precision = max(length / len(words) for length in common)
    recall = max(length / len(other) for length, other in zip(common, others, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest sequence that both have, with gaps."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0  # of the row above, one to the left
        for i, other in enumerate(second):
            above = row[i + 1]
            row[i + 1] = before + 1 if word == other else max(above, row[i])
            before = above
    return row[-1]
