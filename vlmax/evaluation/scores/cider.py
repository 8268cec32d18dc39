"""CIDEr-D (Vedantam et al. 2015), which coco-caption calls CIDEr."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vlmax.data.example import Example
from vlmax.evaluation.scores.bleu import ngrams
from vlmax.evaluation.scores.captions import Captions, Scored

ORDER, SIGMA = 4, 6.0
"""Longest n-grams, and the width of the Gaussian penalty on a difference in length."""

Gram = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CiderD:
    """`cider`, the mean over images. How rare an n-gram is says the scored split itself: few images, other scores."""

    def check(self) -> None:
        """Needs nothing."""

    def reads(self, example: Example) -> None:
        """The texts are enough."""

    def score(self, captions: Captions, facts: Sequence[Any]) -> dict[str, Scored]:
        """The score."""
        return {"cider": cider_d(captions.tokens, captions.reference_tokens)}


class _Vector(NamedTuple):
    """tf-idf of the n-grams of one text, by n; its norms; and its length as the reference counts it, in bigrams."""

    weights: list[dict[Gram, float]]
    norms: list[float]
    length: int


def cider_d(written: Sequence[str], references: Sequence[Sequence[str]]) -> Scored:
    """The score of tokenized texts."""
    own = [_all_ngrams(text) for text in written]
    others = [[_all_ngrams(text) for text in texts] for texts in references]
    images: collections.Counter[Gram] = collections.Counter()  # in whose references an n-gram is
    for texts in others:
        images.update({gram for counts in texts for gram in counts})
    idf = {gram: math.log(len(others)) - math.log(count) for gram, count in images.items()}
    nowhere = math.log(len(others))
    each = np.array([
        np.mean([_similarity(_vector(text, idf, nowhere), _vector(other, idf, nowhere)) for other in texts])
        for text, texts in zip(own, others, strict=True)
    ])  # fmt: skip
    return Scored(float(10 * each.mean()), 10 * each)


def _all_ngrams(text: str) -> collections.Counter[Gram]:
    words = text.split()
    return sum((ngrams(words, n) for n in range(1, ORDER + 1)), collections.Counter())


def _vector(counts: collections.Counter[Gram], idf: dict[Gram, float], nowhere: float) -> _Vector:
    weights: list[dict[Gram, float]] = [{} for _ in range(ORDER)]
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * idf.get(gram, nowhere)
    norms = [math.sqrt(sum(weight**2 for weight in part.values())) for part in weights]
    return _Vector(weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2))


def _similarity(own: _Vector, other: _Vector) -> float:
    """The mean over n of the clipped cosine, times the penalty."""
    total = 0.0
    for n in range(ORDER):
        product = sum(min(w, other.weights[n].get(gram, 0.0)) * other.weights[n].get(gram, 0.0)
                      for gram, w in own.weights[n].items())  # fmt: skip
        norm = own.norms[n] * other.norms[n]
        total += product / norm if norm else product
    return total / ORDER * math.exp(-((own.length - other.length) ** 2) / (2 * SIGMA**2))
