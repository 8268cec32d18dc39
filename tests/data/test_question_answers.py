import pickle

import numpy as np
import pytest

from tests.data.stand_ins import Letters
from vlmax.data.example import BadRecord, Example
from vlmax.data.images import ImageTransform, Squash
from vlmax.data.question_answers import QuestionAnswers
from vlmax.errors import InputError

RNG = np.random.default_rng(0)


def made(answers, preprocess=None, question="What is it?", **fields):
    preprocess = preprocess or QuestionAnswers(ImageTransform(Squash(8)), Letters(), 14, 4, 6)
    fields = {"question": question, "answers": answers, **fields}
    return preprocess(Example("k", np.zeros((8, 8, 3), np.uint8), (), fields), RNG)


def letters(row):
    return Letters().decode(row.tolist())


def test_answers_weigh_as_many_annotators_as_gave_them():
    features = made(["cat"] * 2 + ["dog"] * 7 + [""])
    assert letters(features["question"]) == "whatisit" and features["question"].tolist()[:2] == [1, ord("w") - 94]
    assert [letters(row) for row in features["answers"]] == ["dog", "cat", "", ""]
    np.testing.assert_allclose(features["answer_weights"], [0.7, 0.2, 0, 0])
    assert features["answers"][2].tolist() == [1, 2, 0, 0, 0, 0]  # marks, so that no row is padding alone
    assert features["count/truncated"] == 0 and features["count/answers_left_out"] == 0


def test_features_are_what_is_given_and_travel():
    preprocess = QuestionAnswers(ImageTransform(Squash(8)), Letters(), 14, 4, 6)
    assert preprocess.opened
    preprocess = pickle.loads(pickle.dumps(preprocess))
    found = made(["a"], preprocess)
    for name, feature in preprocess.features().items():
        assert found[name].shape == feature.shape and found[name].dtype == feature.dtype, name
    np.testing.assert_array_equal(preprocess.tokenize(["What is it?"])[0], found["question"])
    assert preprocess.detokenize(found["question"][None]) == ["whatisit"]


def test_one_answer_may_weigh_less_and_what_has_no_room_is_counted():
    np.testing.assert_allclose(made(["a"], answer_weight=0.2)["answer_weights"], [0.2, 0, 0, 0])
    features = made([*list("abcdef"), "a"])
    assert features["count/answers_left_out"] == 2
    np.testing.assert_allclose(features["answer_weights"], [2 / 7, 1 / 7, 1 / 7, 1 / 7])
    assert made(["abcdefgh"])["count/truncated"] == 1 and letters(made(["abcdefgh"])["answers"][0]) == "abcd"


def test_mistakes():
    with pytest.raises(BadRecord, match="no answer"):
        made(["", " "])
    with pytest.raises(BadRecord, match="no question"):
        made(["a"], question=" ")
    with pytest.raises(InputError, match="reads the fields question and answers, and the record has answers, question"):
        made("yes")
    with pytest.raises(InputError, match="answers is 0"):
        QuestionAnswers(ImageTransform(Squash(8)), Letters(), answers=0).features()
    with pytest.raises(InputError, match="no room for its marks"):
        QuestionAnswers(ImageTransform(Squash(8)), Letters(), answer_length=1).features()
