"""The text of the shapes world: true, answerable from itself, and the same at every read."""

import collections
import dataclasses

import pytest

from vlmax.data.sources import shapes_text
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_documents import ShapesText, dialogue, question_prompt
from vlmax.data.tokenizers import TrainedBpe
from vlmax.errors import InputError

SOURCE = ShapesText()
READ = [SOURCE.open()[i] for i in range(300)]


def test_all_forms_come_alike_and_have_no_picture():
    kinds = collections.Counter(
        "caption" if not e.fields else "conversation" if e.fields["kind"] == "conversation" else "question"
        for e in READ
    )
    assert set(kinds) == {"caption", "question", "conversation"} and min(kinds.values()) > 70
    assert all(e.image is None and len(e.texts) == 1 for e in READ)
    assert len({e.key for e in READ}) == len(READ)


def test_a_document_ends_in_its_answer_which_is_that_of_the_scene():
    world = Shapes("train")
    for index, example in enumerate(READ):
        scene = world.scene(index)
        captions = shapes_text.full_captions(scene)
        if not example.fields:
            assert example.texts[0] in captions + shapes_text.loose_captions(scene)
            continue
        prompt, answer = example.fields["prompt"], example.fields["answer"]
        assert example.texts[0] == f"{prompt} {answer}" and captions[0] in prompt
        asked = {question: answer for _, question, answer in shapes_text.questions(scene)}
        question = prompt.rsplit(": ", 1)[-1].split("?")[0] + "?"
        assert asked[question] == answer


def test_captions_say_the_same_scene_again():
    documents, scenes = (
        ShapesText(forms=("captions",)).open(),
        Shapes("train", kinds=("single", "pair", "group")).open(),
    )
    counts = collections.Counter()
    for index in range(200):
        scene, said = scenes[index].fields["scene"], documents[index].texts[0].split("; ")
        full = shapes_text.full_captions(scene)
        assert said[0] in full and {*said} <= {*full, *shapes_text.loose_captions(scene)}
        assert len({*said}) == len(said)
        counts[len(said)] += 1
    assert set(counts) == {2, 3, 4}


def test_prompts_are_written_out():
    assert question_prompt("how many?", "a red ring") == "a red ring question: how many? answer:"
    assert question_prompt("how many?") == "question: how many? answer:"
    turns = (("user", "hi"), ("assistant", "ho"), ("user", "who?"), ("assistant", "me"))
    assert dialogue(turns) == ("user: hi assistant: ho user: who? assistant:", "me")


def test_a_prompt_and_its_answer_have_the_tokens_of_their_text():
    tokenizer = TrainedBpe(SOURCE, examples=200, vocab_size=400).open()
    for example in READ[:60]:
        if example.fields:
            parts = tokenizer.encode(example.fields["prompt"]) + tokenizer.encode(example.fields["answer"])
            assert parts == tokenizer.encode(example.texts[0])


def test_forms_splits_and_seeds_are_as_asked():
    asked = ShapesText(forms=("question",)).open()
    assert all(asked[i].fields["kind"] not in (None, "conversation") for i in range(20))
    texts = {s: [s.open()[i].texts for i in range(20)] for s in (SOURCE, ShapesText("test"), ShapesText(seed=1))}
    assert texts[SOURCE] == [SOURCE.open()[i].texts for i in range(20)]
    assert len({tuple(t) for t in texts.values()}) == 3
    assert SOURCE.name == "shapes-text-train" and ShapesText("test").name == "shapes-text-test"


@pytest.mark.parametrize("changes", [{"count": 0}, {"kinds": ()}, {"forms": ()}])
def test_what_has_no_meaning_is_told(changes):
    with pytest.raises(InputError, match=f"{next(iter(changes))}="):
        dataclasses.replace(SOURCE, **changes).open()
    with pytest.raises(IndexError):
        ShapesText(count=3).open()[3]
