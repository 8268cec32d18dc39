"""VQA accuracy against the official rules, quirks included, and EvalAI's cleaning against its own tests."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.shared import REPOSITORY, shared
from vlmax.errors import InputError
from vlmax.evaluation.scores.vqa import (
    CONTRACTIONS,
    AnswerScore,
    ExactMatch,
    VqaAccuracy,
    cleaned,
    evalai_cleaned,
    vqa_accuracy,
)


def test_evalais_own_cases():
    published = json.loads(shared("data/reference/published.json").read_text())
    for answer, wanted in published["evalai_answer_processing"]["cases"]:
        assert evalai_cleaned(answer) == wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Two", "2"),
        ("None", "0"),
        ("a dog", "dog"),
        ("The man, and a dog", "man and dog"),
        ("black/white", "black white"),
        ("black /white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),  # one mark beside a space takes all of them out
        ("1,000 t-shirts", "1000 tshirts"),  # a comma between digits does so for every mark
        ("3.5", "3.5"),
        ("3. 5", "3 5"),
        ("dr. who.", "dr who"),
        ("u.s.a.", "usa"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("  yes\n", "yes"),
        ("yes\tno", "yes no"),
        ("it's", "it's"),
        ("what?!", "what"),
        ("ten o'clock", "10 o'clock"),
        ("." * 40, "." * 8),
        ("", ""),
        ("the", ""),
    ],
)
def test_answers_are_cleaned_by_the_official_rules(answer, wanted):
    assert cleaned(answer) == wanted


def test_contractions_are_those_of_the_official_table():
    assert CONTRACTIONS["aint"] == "ain't" and CONTRACTIONS["yall'd've"] == "y'all'd've"
    assert CONTRACTIONS["ow's'at"] == "'ow's'at"
    # Of the official table's 120 the four in upper case are never found, and let's and she's stay what they are.
    assert len(CONTRACTIONS) == 114
    assert "lets" not in CONTRACTIONS and "wed" not in CONTRACTIONS and "hell" not in CONTRACTIONS


def test_accuracy_is_the_mean_over_all_ways_to_leave_one_out():
    people = ["yes"] * 3 + ["no"] * 7
    assert vqa_accuracy("no", people) == 1.0
    assert vqa_accuracy("yes", people) == pytest.approx((7 * 1 + 3 * 2 / 3) / 10)
    assert vqa_accuracy("maybe", people) == 0
    for count, wanted in enumerate([0, 0.3, 0.6, 0.9, 1, 1]):
        assert vqa_accuracy("b", ["b"] * count + [f"c{i}" for i in range(10 - count)]) == pytest.approx(wanted)


def test_answers_are_cleaned_where_people_differ_and_not_else():
    assert vqa_accuracy("t-shirt", ["t-shirt"] * 10) == 1
    assert vqa_accuracy("t-shirt", ["t-shirt"] * 9 + ["shirt"]) == pytest.approx(1)
    assert vqa_accuracy("Two", ["two"] * 10) == 0 and vqa_accuracy("Two", ["2"] * 10) == 0
    assert vqa_accuracy("Two", ["two"] * 5 + ["2"] * 5) == 1
    assert vqa_accuracy("the dog", ["A dog"] * 9 + ["cat"]) == pytest.approx(1)
    assert vqa_accuracy("yes\n", [" yes"] * 10) == 1


def test_the_official_code_gives_the_same_accuracies():
    """Golden: what it printed for these answers (tests/parity/make_golden_vqa.py)."""
    golden = json.loads((REPOSITORY / "tests/golden/vqa.json").read_text())
    assert set(CONTRACTIONS) < {answer for answer, _ in golden["cleaned"]}
    for answer, wanted in golden["cleaned"]:
        assert cleaned(answer) == wanted, answer
    for answer, people, wanted in golden["accuracies"]:
        assert round(100 * vqa_accuracy(answer, people), 2) == wanted, (answer, people)
    assert len({accuracy for *_, accuracy in golden["accuracies"]}) >= 5


def test_scores_of_many_answers():
    people = [["yes"] * 10, ["no"] * 10]
    np.testing.assert_array_equal(VqaAccuracy().each(["yes", "yes"], people), [1, 0])
    np.testing.assert_array_equal(ExactMatch().each([" Traffic  light ", "no"], [["traffic light"], ["yes"]]), [1, 0])
    assert isinstance(VqaAccuracy(), AnswerScore) and isinstance(ExactMatch(), AnswerScore)
    with pytest.raises(InputError, match="take ExactMatch"):
        VqaAccuracy().each(["yes"], [["yes"]])
    with pytest.raises(InputError, match="no answer that others"):
        ExactMatch().each(["yes"], [[]])
