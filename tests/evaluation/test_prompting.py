"""Prompts with their marks, and whether a system reads them at all."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from tests import tiny_blip
from tests.data.stand_ins import Letters
from tests.evaluation.stand_in import Pictures, Plain
from tests.evaluation.tiny_writer import pictures
from vlmax.data.example import BadRecord
from vlmax.data.image_prompts import Instruction
from vlmax.errors import InputError
from vlmax.evaluation.captioning import Captioning, PromptedImage
from vlmax.evaluation.prompting import Prompting, Prompts, prompt_row
from vlmax.evaluation.question_answering import QuestionAnswering
from vlmax.training.evaluations import check_needs


def test_marks():
    marked = Prompting(Letters(), begin="q", end=("z", "y"))
    assert marked.tokens("ab") == [19, 3, 4] and marked.marks().eos == (28, 27)
    assert marked.answer("ab") == [3, 4, 28]
    assert marked.written([3, 4, 27, 5]) == "ab"
    plain = Prompting(Letters())
    assert plain.tokens("ab") == [1, 3, 4] and plain.answer("ab") == [3, 4, 2]
    assert dataclasses.replace(plain, closed=True).tokens("ab") == [3, 4, 2]
    assert dataclasses.replace(marked, closed=True).tokens("ab") == [19, 3, 4, 2]


def test_a_row_ends_with_its_prompt():
    found = prompt_row([5, 6], 4)
    assert found["prompt"].tolist() == [0, 0, 5, 6] and found["prompt_valid"].tolist() == [0, 0, 1, 1]


def test_a_long_question_loses_its_last_words():
    prompting = Prompting(Letters())
    assert prompting.fitting("q{}z", "ab cd", 9) == ([1, 19, 3, 4, 5, 6, 28], False)
    assert prompting.fitting("q{}z", "ab cd", 6) == ([1, 19, 3, 4, 28], True)
    with pytest.raises(BadRecord, match="more than 2 tokens"):
        prompting.fitting("q{}z", "ab cd", 2)


@dataclasses.dataclass(frozen=True)
class Reads:
    """A system that knows small letters, and perhaps instructions of a length."""

    length: int | None = None

    def inputs(self):
        return {} if self.length is None else {"instruction": jax.ShapeDtypeStruct((self.length,), np.int32)}

    def check_tokenizer(self, tokenizer):
        if tokenizer.vocab_size > 30:
            raise InputError("too many ids")

    check_instruction = check_tokenizer


class Shifted(Letters):
    """Other ids for the same letters."""

    def encode(self, text):
        return [33 - token for token in super().encode(text)]


@pytest.mark.parametrize("kind", [Captioning, QuestionAnswering])
def test_prompts_must_be_what_the_system_reads(kind):
    evaluation = kind(Pictures(pictures(1)), Prompting(Letters()), name="x")
    asked = dataclasses.replace(evaluation, instruction=Instruction(Letters(), 5))
    learned = types.SimpleNamespace(opened=Letters(), instruction=types.SimpleNamespace(opened=Letters()))
    assert isinstance(evaluation, Prompts)
    evaluation.check_prompts(Reads(), learned)
    asked.check_prompts(Reads(5), learned)
    evaluation.check_prompts(Reads(), object())
    put, told = "'x': prompting.tokenizer", "'x': instruction.tokenizer"
    wrong = [
        (dataclasses.replace(evaluation, prompting=Prompting(Letters(31))), Reads(), f"{put}: too many"),
        (dataclasses.replace(evaluation, prompting=Prompting(Shifted())), Reads(), f"{put} makes other tokens"),
        (dataclasses.replace(asked, instruction=Instruction(Letters(31), 5)), Reads(5), f"{told}: too many"),
        (dataclasses.replace(asked, instruction=Instruction(Shifted(), 5)), Reads(5), f"{told} makes other tokens"),
        (evaluation, Reads(5), "its instruction has the length None, and that of the system 5"),
        (asked, Reads(), "its instruction has the length 5, and that of the system None"),
        (asked, Reads(6), "its instruction has the length 5, and that of the system 6"),
    ]
    for one, system, message in wrong:
        with pytest.raises(InputError, match=message):
            one.check_prompts(system, learned)


def test_a_run_finds_out_before_it_begins():
    captioning = Captioning(Pictures(pictures(1)), Prompting(Letters()))
    with pytest.raises(InputError, match=r"evaluation 'captions': prompting\.tokenizer: .*system\.model\.pad is 27"):
        check_needs(tiny_blip.experiment("caption", evaluations=(captioning,)))


def test_an_instruction_goes_with_the_picture():
    captioning = Captioning(Pictures(()), Prompting(Letters()), prompt="ab", instruction=Instruction(Letters(), 5))
    given = PromptedImage(Plain(), captioning)
    found = given(pictures(1)[0], np.random.default_rng(0))
    assert found["instruction"].tolist() == [1, 3, 4, 2, 0] and found["prompt"].tolist() == [1, 3, 4]
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in given.features().items()}
