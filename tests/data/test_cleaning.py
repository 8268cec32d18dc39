import pickle

import pytest

from tests.data.stand_ins import Texts
from vlmax.data.cleaning import CleanCaption, Cleaned, CleanQuestion
from vlmax.data.example import BadRecord
from vlmax.errors import InputError


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [  # by the rules of the public code's pre_caption
        ("A man.", "a man"), ("Wow! (A \"dog\") *#:;~ runs", "wow a dog runs"), ("  two,  dogs' - \n", "two, dogs' -"),
        ("a.b", "a b"), ("\tA\t\tb\n\n", "\ta b"), ("...", ""), ("One, two? three/four", "one, two? three/four"),
    ],
)  # fmt: skip
def test_captions(text, cleaned):
    assert CleanCaption()(text) == cleaned


def test_the_first_words_are_kept():
    assert CleanCaption(3)("One two. Three four five") == "one two three"
    assert CleanQuestion(2)("What is this?") == "what is"
    assert CleanCaption()("w " * 40) == " ".join("w" * 30)
    with pytest.raises(InputError, match="words is 0"):
        CleanCaption(0)


def test_questions_lose_signs_without_a_space():
    assert CleanQuestion()("Is it 5:30 p.m.? ") == "is it 530 pm?"
    assert CleanQuestion()(' "Yes"  or no ') == " yes  or no"


def test_a_source_with_cleaned_texts():
    source = Cleaned(Texts(("A Dog.", "...", "Two!")))
    reader = pickle.loads(pickle.dumps(source.open()))
    assert source.name == "texts" and len(reader) == 3 and (reader[0].texts, reader[2].texts) == (("a dog",), ("two",))
    with pytest.raises(BadRecord, match="no word is left") as raised:
        reader[1]
    assert raised.value.key == "1"
