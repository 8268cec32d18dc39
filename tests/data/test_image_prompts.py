"""A picture and a text for a language model: what is read, what is learned, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.data.stand_ins import Letters
from vlmax.data.example import BadRecord, Example
from vlmax.data.image_prompts import AnswerTo, CaptionAfter, ImagePair, ImagePrompt, Instruction
from vlmax.data.images import ImageTransform, Squash
from vlmax.data.sources.shapes_documents import ShapesText
from vlmax.data.texts import IGNORED, PackedPairs, parted
from vlmax.data.tokenizers import TrainedBpe
from vlmax.errors import InputError

IMAGE = ImageTransform(Squash(8))
PICTURE = np.full((8, 8, 3), 7, np.uint8)
CAPTION = Example("1", PICTURE, ("abc", "de"))
QUESTION = Example("2", PICTURE, ("what",), {"question": "xy", "answers": ["b", "b", "c", " "]})


def rng(seed=0):
    return np.random.default_rng(seed)


def ids(text):
    return Letters().encode(text)


# For a decoder.


def test_a_caption_is_learned_with_its_end_and_without_its_prompt():
    make = ImagePrompt(IMAGE, Letters(), length=10, asks=CaptionAfter("a photo of", "first"))
    found = make(CAPTION, rng())
    prompt, caption = ids("aphotoof"), ids("abc")
    text = [1, *prompt, *caption]
    assert found["text"].tolist() == text[:10] and found["image"].tolist() == PICTURE.tolist()
    assert found["labels"].tolist() == [IGNORED] * 8 + [caption[0], caption[1]]
    assert found["segments"].tolist() == [1] * 10 and int(found["count/truncated"]) == 1
    short = dataclasses.replace(make, length=16)(CAPTION, rng())
    assert short["text"].tolist() == [*text, 0, 0, 0, 0]
    assert short["labels"].tolist() == [IGNORED] * 8 + [*caption, 2] + [IGNORED] * 4
    assert short["segments"].tolist() == [1] * 12 + [0] * 4 and int(short["count/truncated"]) == 0


def test_without_a_prompt_all_of_the_caption_is_learned():
    found = ImagePrompt(IMAGE, Letters(), length=6, asks=CaptionAfter(choose="first"))(CAPTION, rng())
    assert found["text"].tolist() == [1, *ids("abc"), 0, 0]
    assert found["labels"].tolist() == [*ids("abc"), 2, IGNORED, IGNORED]
    no_mark = ImagePrompt(IMAGE, Letters(bos=None), length=6, asks=CaptionAfter(choose="first"))(CAPTION, rng())
    assert no_mark["labels"].tolist() == [*ids("bc"), 2, IGNORED, IGNORED, IGNORED]


def test_a_text_may_end_otherwise_than_with_the_mark():
    found = ImagePrompt(IMAGE, Letters(), length=6, asks=CaptionAfter(choose="first"), end="z")(CAPTION, rng())
    assert found["labels"].tolist()[:4] == [*ids("abc"), *ids("z")]
    with pytest.raises(InputError, match=r"data.preprocess.end is '!', and the tokenizer makes no token of it"):
        ImagePrompt(IMAGE, Letters(), end="!").features()
    with pytest.raises(InputError, match="mark of the end"):
        ImagePrompt(IMAGE, Letters(eos=None)).features()


def test_answers_are_drawn_as_often_as_they_were_given():
    make = ImagePrompt(IMAGE, Letters(), length=8, asks=AnswerTo("q {} a"))
    answers = [make(QUESTION, rng(i))["labels"].tolist() for i in range(300)]
    first = [next(label for label in row if label != IGNORED) for row in answers]
    share = np.mean([token == ids("b")[0] for token in first])
    assert set(first) == {*ids("bc")} and 0.55 < share < 0.78
    assert make(QUESTION, rng())["text"].tolist()[:5] == [1, *ids("qxya")]
    common = dataclasses.replace(make, asks=AnswerTo("q {} a", "first"))
    assert all(common(QUESTION, rng(i))["labels"][4] == ids("b")[0] for i in range(20))


def test_space_between_prompt_and_answer_is_the_tokenizer_s():
    tokenizer = TrainedBpe(ShapesText("train"), vocab_size=512).open()
    prompt, answer = parted(tokenizer, "what color is it? answer:", "red")
    assert prompt + answer == tokenizer.encode("what color is it? answer: red")
    assert tokenizer.decode(answer).strip() == "red"


def test_a_prompt_that_melts_into_the_answer_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Melting(Letters):
        def encode(self, text):
            return [29] if text == "ab c" else super().encode(text)

    with pytest.raises(InputError, match="tokens of the prompt 'ab' are not the first"):
        parted(Melting(), "ab", "c")


def test_the_instruction_is_the_prompt_in_another_tokenizer_s_tokens():
    asked = Instruction(Letters(pad_id=29), 6)
    make = ImagePrompt(IMAGE, Letters(), length=8, asks=AnswerTo("q {}"), instruction=asked)
    found = make(QUESTION, rng())
    assert found["instruction"].tolist() == [1, *ids("qxy"), 2, 29]
    assert make.features()["instruction"].shape == (6,) and int(found["count/instruction_truncated"]) == 0
    cut = dataclasses.replace(make, instruction=Instruction(Letters(), 4))(QUESTION, rng())
    assert cut["instruction"].tolist() == [1, *ids("qx"), 2] and int(cut["count/instruction_truncated"]) == 1


@pytest.mark.parametrize("instruction", [None, Instruction(Letters(), 5)])
def test_the_features_are_what_it_says(instruction):
    for make in (
        ImagePrompt(IMAGE, Letters(), 9, instruction=instruction),
        ImagePair(IMAGE, PackedPairs(Letters(), 6, 7), instruction=instruction),
    ):
        found = {name: x for name, x in make(CAPTION, rng()).items() if not name.startswith("count/")}
        said = make.features()
        assert found.keys() == said.keys()
        for name, feature in said.items():
            assert (found[name].shape, found[name].dtype.name) == (feature.shape, feature.dtype), name


def test_texts_are_shown_as_the_model_reads_them():
    make = ImagePrompt(IMAGE, Letters(), 6)
    assert make.tokenize(["ab"]).tolist() == [[1, *ids("ab"), 0, 0, 0]]
    assert make.detokenize(make.tokenize(["ab", "cde"])) == ["ab", "cde"]


# For an encoder-decoder.


def test_a_caption_is_parted_anywhere():
    make = ImagePair(IMAGE, PackedPairs(Letters(), 8, 8), CaptionAfter(choose="first"))
    cuts = set()
    for seed in range(60):
        found = make(CAPTION, rng(seed))
        read = [t for t in found["inputs"].tolist() if t > 2]
        learned = [t for t in found["labels"].tolist() if t > 2]
        assert read + learned == ids("abc")
        cuts.add(len(read))
        assert found["targets"].tolist()[: len(learned) + 1] == [0, *learned]
    assert cuts == {0, 1, 2}


def test_a_prompt_is_read_and_the_answer_written():
    make = ImagePair(IMAGE, PackedPairs(Letters(), 8, 8, learn="answer"), AnswerTo("q {}", "first"))
    found = make(QUESTION, rng())
    assert found["inputs"].tolist()[:4] == [*ids("qxy"), 2]
    assert found["labels"].tolist()[:2] == [*ids("b"), 2]


# What cannot be.


def test_records_without_text_or_picture_are_damaged():
    make = ImagePrompt(IMAGE, Letters(), 8)
    for example, words in (
        (Example("1", PICTURE), "no caption"),
        (Example("1", None, ("a",)), "no image"),
        (Example("1", PICTURE, ("!",)), "no answer"),
    ):
        with pytest.raises(BadRecord, match=words):
            make(example, rng())
    with pytest.raises(BadRecord, match="prompt of 9 tokens leaves no room for an answer in 8"):
        dataclasses.replace(make, asks=CaptionAfter("abcdefgh"))(CAPTION, rng())
    answering = dataclasses.replace(make, asks=AnswerTo())
    for fields, words in (
        ({"question": " ", "answers": ["a"]}, "no question"),
        ({"question": "a", "answers": [" "]}, "no answer"),
    ):
        with pytest.raises(BadRecord, match=words):
            answering(Example("1", PICTURE, (), fields), rng())


def test_settings_that_make_no_sense_are_refused_by_name():
    with pytest.raises(InputError, match=r"data.preprocess.asks.prompt is 'a'; it must have one \{\}"):
        AnswerTo("a")
    with pytest.raises(InputError, match=r"fields question and answers, and the record has .none."):
        ImagePrompt(IMAGE, Letters(), 8, AnswerTo())(CAPTION, rng())
    with pytest.raises(InputError, match="length is 1"):
        ImagePrompt(IMAGE, Letters(), 1).features()
    with pytest.raises(InputError, match="documents is 2"):
        ImagePair(IMAGE, PackedPairs(Letters(), 8, 8, documents=2)).features()
    with pytest.raises(InputError, match="so that no prompt is read"):
        ImagePair(IMAGE, PackedPairs(Letters(), 8, 8), CaptionAfter("a")).features()
