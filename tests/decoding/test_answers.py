"""The likeliest of some answers against a whole pass over each, for every kind of decoder."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.decoding.test_generate import built
from tests.decoding.tiny import MODELS, PROMPTS, V
from vlmax.decoding.answers import answer_rows, likeliest
from vlmax.decoding.prompts import padded
from vlmax.decoding.readers import reader_of
from vlmax.errors import InputError

RNG = np.random.default_rng(5)
ANSWERS = [[*RNG.integers(3, V, length).tolist(), 2] for length in (1, 3, 2, 0, 5, 2, 1)]


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_whose_tokens_are_likeliest_is_chosen(name):
    model, params, logits = built(name)
    reader = reader_of(model, 0)

    def steps(prompt, answer):
        return [float(jax.nn.log_softmax(logits(prompt, answer[:i]))[answer[i]]) for i in range(len(answer))]

    table = [[steps(prompt, answer) for answer in ANSWERS] for prompt in PROMPTS]
    prompt = padded(PROMPTS, V, 40, 40)
    for first, at_once in ((7, 7), (7, 3), (4, 2)):
        found = likeliest(reader, params, prompt, answer_rows(ANSWERS, V), first, at_once)
        chosen = [sorted(range(7), key=lambda i: -row[i][0])[:first] for row in table]
        best = [max(own, key=lambda i: sum(row[i])) for own, row in zip(chosen, table, strict=True)]
        assert found.answer.tolist() == best and found.sound.all()
        wanted = [sum(row[i]) for i, row in zip(best, table, strict=True)]
        np.testing.assert_allclose(found.score, wanted, rtol=1e-4)


def test_answers_of_one_token_each():
    model, params, logits = built("opt")
    found = likeliest(reader_of(model, 0), params, padded(PROMPTS, V, 40, 40), answer_rows([[3], [9], [4]], V), 2, 2)
    wanted = [[3, 9, 4][int(np.argmax(np.asarray(logits(prompt, []))[[3, 9, 4]]))] for prompt in PROMPTS]
    assert [[3, 9, 4][i] for i in found.answer] == wanted


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(InputError, match="there are no candidates"):
        answer_rows([], V)
    with pytest.raises(InputError, match="candidate 1 has no tokens"):
        answer_rows([[3], []], V)
    with pytest.raises(InputError, match="0 to 39"):
        answer_rows([[3], [V]], V)
