"""Answers in the system's own words and by choosing, against the slow way."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.data.stand_ins import Letters
from tests.evaluation.stand_in import Pictures
from tests.evaluation.tiny_writer import context, greedy, logits_after, pictures, prompting
from vlmax.decoding.settings import Generation
from vlmax.errors import InputError
from vlmax.evaluation.question_answering import ByRank, InOwnWords, QuestionAnswering
from vlmax.evaluation.scores.vqa import ExactMatch

QUESTIONS = ("ab", "c", "defg", "what is a bc", "hi")
EXAMPLES = pictures(
    11,
    question=lambda i: QUESTIONS[i % 5],
    answers=lambda i: ["ab"] * 4 + ["cd"] * (6 - i % 3) + ["yes"] * (i % 3),
    answer_type=lambda i: ("yes/no", "other")[i % 2],
    question_id=lambda i: 1000 + i,
)
CANDIDATES = ("ab", "abc", "cd", "e", "yes", "no", "b", "zzz")


def asked(family, **changes):
    settings = {"batch_size": 8, "length": 8, "answering": InOwnWords(Generation(max_new_tokens=5)), **changes}
    return QuestionAnswering(Pictures(EXAMPLES), prompting(family), **settings)


def run(evaluation, family, devices=8, **changes):
    kept = {}
    given = context(family, devices, keep=kept.__setitem__, **changes)
    evaluation.check(given.mesh)
    return evaluation.run(given), kept.get("vqa")


def prompt_of(family, question, length=8):
    letters = Letters().encode(question)
    return [*letters, 2] if family == "t5" else [1, *letters]


@pytest.mark.parametrize("family", ["bert", "opt", "t5"])
def test_answers_are_those_of_each_question_alone(family):
    told = []
    scores, kept = run(asked(family), family, log=told.append)
    short = [q.rsplit(" ", 1)[0] if q.startswith("what") else q for q in QUESTIONS]
    wanted = [
        Letters().decode(greedy(family, e.image, prompt_of(family, short[i % 5]), 5)) for i, e in enumerate(EXAMPLES)
    ]
    assert [row["answer"] for row in kept] == wanted
    assert [row["question_id"] for row in kept] == [1000 + i for i in range(11)]
    assert scores["eval/vqa/questions"] == 11 and {"eval/vqa/accuracy_yes_no", "eval/vqa/accuracy_other"} < set(scores)
    cut = sum(q.startswith("what") and len(prompt_of(family, q)) > 8 for q in (QUESTIONS * 3)[:11])
    assert told == ([f"evaluation 'vqa': {cut} questions of this process are longer than `length`; their ends are left "
                     "out"] if cut else [])  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "opt", "t5"])
def test_the_chosen_answer_is_the_likeliest_of_all(family):
    likelihoods = logits_after(family)

    def score(example, answer):
        ids = [*Letters().encode(answer), 2]
        short = example.fields["question"].rsplit(" ", 1)[0] if "what" in example.fields["question"] else None
        prompt = prompt_of(family, short or example.fields["question"])
        steps = [jax.nn.log_softmax(likelihoods(example.image, prompt, ids[:i]))[ids[i]] for i in range(len(ids))]
        return float(np.sum(steps)), float(steps[0])

    table = [[score(example, answer) for answer in CANDIDATES] for example in EXAMPLES]
    wanted = [CANDIDATES[int(np.argmax([whole for whole, _ in row]))] for row in table]
    _, kept = run(asked(family, answering=ByRank(CANDIDATES, first=8, at_once=3)), family)
    assert [row["answer"] for row in kept] == wanted and len(set(wanted)) > 1
    # Those whose first token is likeliest alone: of equal ones, the first.
    first = [sorted(range(8), key=lambda i: (-row[i][1], i))[:2] for row in np.round(table, 4).tolist()]
    wanted = [CANDIDATES[max(chosen, key=lambda i: row[i][0])] for row, chosen in zip(table, first, strict=True)]
    _, kept = run(asked(family, answering=ByRank(CANDIDATES, first=2, at_once=2)), family, devices=1)
    assert [row["answer"] for row in kept] == wanted


def test_answers_are_scored_by_vqa_accuracy_and_exactly():
    always = dataclasses.replace(asked("bert"), answering=ByRank(("ab",)), scores=(ExactMatch(),))
    scores, _ = run(always, "bert")
    assert scores["eval/vqa/exact"] == 1
    scores, _ = run(dataclasses.replace(always, answering=ByRank(("yes",))), "bert")
    assert scores["eval/vqa/exact"] == pytest.approx(7 / 11)
    scores, _ = run(dataclasses.replace(asked("bert"), answering=ByRank(("yes",))), "bert")
    # k people say yes: the others see k, those k see k - 1.
    each = [0, ((10 - 1) * 1 / 3) / 10, ((10 - 2) * 2 / 3 + 2 * 1 / 3) / 10]
    assert scores["eval/vqa/accuracy"] == pytest.approx(np.mean([each[i % 3] for i in range(11)]))


def test_what_does_not_fit_is_told(tmp_path):
    mesh = context("bert").mesh
    with pytest.raises(InputError, match="0 candidates and the file of them is None"):
        ByRank(())
    with pytest.raises(InputError, match="first is 0"):
        ByRank(("a",), first=0)
    with pytest.raises(InputError, match="'a' is given twice"):
        asked("bert", answering=ByRank(("a", "b", "a"))).check(mesh)
    with pytest.raises(InputError, match="candidate 1 is empty"):
        asked("bert", answering=ByRank(("a", " "))).check(mesh)
    with pytest.raises(InputError, match="nothing ends an answer"):
        ByRank(("a",)).check(dataclasses.replace(prompting("bert"), tokenizer=Letters(eos=None)))
    file = tmp_path / "answers.json"
    file.write_text(json.dumps([]))
    with pytest.raises(InputError, match="there are no candidates"):
        asked("bert", answering=ByRank(file=str(file))).check(mesh)
    file.write_text(json.dumps({"a": 1}))
    with pytest.raises(InputError, match="no JSON list of texts"):
        asked("bert", answering=ByRank(file=str(file))).check(mesh)
    with pytest.raises(InputError, match=r"needs one \{\} for the question"):
        asked("bert", prompt="Question:").check(mesh)
    with pytest.raises(InputError, match="length is 1"):
        asked("bert", prompt="abc {}", length=1).check(mesh)
    unknown = tuple(dataclasses.replace(e, fields={"question": "ab"}) for e in EXAMPLES)
    with pytest.raises(InputError, match="1 of 1 questions have no answer"):
        run(dataclasses.replace(asked("bert"), source=Pictures(unknown)), "bert")
    some = (EXAMPLES[0], *unknown[1:])
    with pytest.raises(InputError, match="10 of 11 questions have no answer"):
        run(dataclasses.replace(asked("bert"), source=Pictures(some)), "bert")
    with pytest.raises(InputError, match="take ExactMatch"):
        one = tuple(dataclasses.replace(e, fields={"question": "ab", "answer": "c"}) for e in EXAMPLES)
        dataclasses.replace(asked("bert"), source=Pictures(one)).check(mesh)
    _, kept = run(dataclasses.replace(asked("bert", scores=()), source=Pictures(unknown)), "bert")
    assert len(kept) == 11
    without = tuple(dataclasses.replace(e, fields={}) for e in EXAMPLES)
    with pytest.raises(InputError, match="no text in a field question"):
        run(dataclasses.replace(asked("bert"), source=Pictures(without)), "bert")
