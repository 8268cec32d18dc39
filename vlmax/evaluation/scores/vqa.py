"""Answers to questions: VQA accuracy by the official evaluation's rules (Antol et al. 2015, section 4), exact matches.

The rules are those of the code that scores VQA v1, VQAv2 and OK-VQA (GT-Vision-Lab/VQA, vqaEval.py of March 2021),
quirks included. Until then it cleaned every answer of a model, and people's of punctuation alone, as copies of it still
do (LAVIS's among them); a score may differ by that.

* Answers are cleaned, the model's and people's, only where the ten people's are not all alike. Where all said `yes`,
  `Yes` is wrong.
* A mark of punctuation is taken out where somewhere in the answer it stands beside a space, or where a comma stands
  between digits; else a space takes its place.
* A full stop goes unless a digit follows; the pattern's look at what stands before does nothing. Of one answer 32 go at
  most: a flag is passed where the count belongs.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vlmax.errors import InputError

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_TO_TEN)}
ARTICLES = ("a", "an", "the")
SHORT_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Each short form by what is left of it when one of its apostrophes is forgotten, and the official table's slip."""
    places = ((form, i) for form in SHORT_FORMS.split() for i, letter in enumerate(form) if letter == "'")
    return {form[:i] + form[i + 1 :]: form for form, i in places} | {"somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()
_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32


@runtime_checkable
class AnswerScore(Protocol):
    """A frozen configuration of one way to score answers, what `QuestionAnswering` holds."""

    if TYPE_CHECKING:  # command-line overrides narrow a field by its protocol's methods: no others at run time

        @property
        def name(self) -> str:
            """What the score is called."""
            ...

    def each(self, answers: Sequence[str], people: Sequence[Sequence[str]]) -> Float[np.ndarray, " n"]:
        """The score of every answer, 0 to 1, held against what people answered; the whole score is the mean."""
        ...


@dataclasses.dataclass(frozen=True)
class VqaAccuracy:
    """`accuracy`: 1 where 3 of the other annotators gave the answer; see `vqa_accuracy`."""

    @property
    def name(self) -> str:
        """`accuracy`."""
        return "accuracy"

    def each(self, answers: Sequence[str], people: Sequence[Sequence[str]]) -> Float[np.ndarray, " n"]:
        """The accuracy of every answer; raises `InputError` where fewer than two people answered."""
        return np.array([vqa_accuracy(answer, given) for answer, given in zip(answers, people, strict=True)])


@dataclasses.dataclass(frozen=True)
class ExactMatch:
    """`exact`: 1 where the answer is one of people's, both without case and space around them, as for GQA."""

    @property
    def name(self) -> str:
        """`exact`."""
        return "exact"

    def each(self, answers: Sequence[str], people: Sequence[Sequence[str]]) -> Float[np.ndarray, " n"]:
        """1 or 0 for every answer; raises `InputError` where nobody answered."""
        if not all(people):
            raise InputError("scoring answers: a question has no answer that others could be held against")
        plain = [[" ".join(text.lower().split()) for text in (answer, *given)]
                 for answer, given in zip(answers, people, strict=True)]  # fmt: skip
        return np.array([float(texts[0] in texts[1:]) for texts in plain])


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """The mean over annotators of min(1, k / 3), where k of the others gave this answer.

    Args:
      answer: as the model wrote it.
      people: what the annotators answered; ten, officially.

    Raises:
      InputError: fewer than two annotators, so that nobody is left to agree.
    """
    if len(people) < 2:
        raise InputError(
            f"VQA accuracy: a question has {len(people)} answers, and each is scored by the others, ten officially; "
            "where there is one right answer, as in GQA, take ExactMatch in place of VqaAccuracy"
        )
    answer, people = _on_one_line(answer), [_on_one_line(text) for text in people]
    if len(set(people)) > 1:
        answer, people = cleaned(answer), [cleaned(text) for text in people]
    same = [text == answer for text in people]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(people)


@functools.lru_cache(maxsize=1 << 16)
def cleaned(answer: str) -> str:
    """An answer as it is compared: lower case, no punctuation and articles, digits for numbers up to ten."""
    return plain_words(without_punctuation(_on_one_line(answer)))


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def evalai_cleaned(answer: str) -> str:
    """An answer as it is cleaned before it is sent to EvalAI's servers, in MMF and LLaVA: `'s` is a word of its own."""
    answer = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return cleaned(answer)


def without_punctuation(text: str) -> str:
    """See the rules at the top."""
    outcome, comma = text, _COMMA.search(text) is not None
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        outcome = outcome.replace(mark, "" if beside_space or comma else " ")
    return _FULL_STOP.sub("", outcome, count=_MOST_FULL_STOPS)


def plain_words(text: str) -> str:
    """Words in lower case: digits for numbers, no articles, apostrophes where they were forgotten."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
