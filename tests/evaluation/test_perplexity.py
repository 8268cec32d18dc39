"""Perplexity and exact answers against figures computed by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.stand_ins import Letters, Texts
from tests.evaluation import stand_in
from vlmax.data.texts import IGNORED, PackedPairs, PackedText
from vlmax.errors import InputError
from vlmax.evaluation.evaluation import absent
from vlmax.evaluation.perplexity import Perplexity

TEXTS = ("abc", "zb", "abcdef", "b", "xyz", "aaaa", "bcd", "q", "rs")
TEXT = PackedText(Letters(), length=8)


@jax.jit
def score(batch):
    """Token k costs k / 10 nats and is right where it is below 10 (letters up to g, and the end)."""
    learned = batch["labels"] != IGNORED
    nll = jnp.where(learned, batch["labels"] / 10, 0)
    right = learned & (batch["labels"] < 10)
    sums = {"nll": nll, "right": right, "tokens": learned}
    return {name: x.sum(axis=1).astype(jnp.float32) for name, x in sums.items()}


def context(**changes):
    return stand_in.context(8, embed_images=absent, embed_texts=absent, score=score, **changes)


def ids(text):
    return [*Letters().encode(text), 2]


def expected(texts):
    tokens = [t for text in texts for t in ids(text)]
    return {
        "eval/text/perplexity": np.exp(np.sum(tokens) / 10 / len(tokens)),
        "eval/text/accuracy": np.mean([t < 10 for t in tokens]),
        "eval/text/exact": np.mean([all(t < 10 for t in ids(text)) for text in texts]),
        "eval/text/examples": len(texts),
        "eval/text/tokens": len(tokens),
    }


def test_the_scores_are_over_all_tokens_alike():
    found = Perplexity(Texts(TEXTS), TEXT, batch_size=8).run(context())
    assert found == pytest.approx(expected(TEXTS))
    limited = Perplexity(Texts(TEXTS), TEXT, batch_size=8, limit=4).run(context())
    assert limited == pytest.approx(expected(TEXTS[:4]))


def test_damaged_texts_are_told_and_left_out():
    told = []
    found = Perplexity(Texts(TEXTS, damaged=(1,)), TEXT, batch_size=16).run(context(log=told.append))
    assert found == pytest.approx(expected(TEXTS[:1] + TEXTS[2:]))
    assert told == ["evaluation 'text': 1 of 9 records are damaged and are not scored"]


def test_pieces_of_long_texts_are_told():
    told = []
    long = Texts((*TEXTS, "abcdefgh", "abcdefghi"))
    found = Perplexity(long, TEXT, batch_size=8).run(context(log=told.append))
    assert found["eval/text/examples"] == len(TEXTS) + 2
    assert told == [
        "evaluation 'text': 2 texts of this process are longer than a row of its preprocess, and of each a piece is "
        "scored; lengthen the rows"
    ]


def test_answers_alone_count_where_the_preprocess_learns_them():
    texts = tuple(t for t in TEXTS if len(t) > 2)
    answers = dataclasses.replace(TEXT, learn="answer")
    pairs = PackedPairs(Letters(), inputs=8, length=8, learn="answer")
    for preprocess in (answers, pairs):
        found = Perplexity(Texts(texts), preprocess, batch_size=8).run(context())
        assert found == pytest.approx(expected(tuple(text[2:] for text in texts)))


def test_what_would_end_a_run_is_told_before_it():
    mesh = context().mesh
    with pytest.raises(InputError, match="batch_size 12 does not divide"):
        Perplexity(Texts(TEXTS), TEXT, batch_size=12).check(mesh)
    with pytest.raises(InputError, match="documents is 0"):
        Perplexity(Texts(TEXTS), dataclasses.replace(TEXT, documents=0)).check(mesh)
    with pytest.raises(InputError, match="limit is 0"):
        Perplexity(Texts(TEXTS), TEXT, limit=0).check(mesh)


def test_a_text_of_which_nothing_is_learned_is_an_error():
    def nothing(batch):
        return {**score(batch), "tokens": 0 * score(batch)["tokens"]}

    with pytest.raises(InputError, match=r"evaluation 'text': 8 of 8 texts have no learned token"):
        Perplexity(Texts(TEXTS), TEXT, batch_size=8, limit=8).run(dataclasses.replace(context(), score=nothing))


def test_a_context_says_what_it_does_not_have():
    with pytest.raises(InputError, match="the system does not have"):
        context().embed_images(np.zeros(1))
