"""Captioning with each kind of decoder against the slow way, picture by picture."""

from __future__ import annotations

import dataclasses

import pytest

from tests.data.stand_ins import Letters
from tests.evaluation.stand_in import Pictures
from tests.evaluation.tiny_writer import context, greedy, meshed, pictures, prompting
from vlmax.data.sources.shapes import Shapes
from vlmax.data.sources.shapes_text import full_captions
from vlmax.decoding.settings import Generation
from vlmax.errors import InputError
from vlmax.evaluation.captioning import Captioning
from vlmax.evaluation.evaluation import Evaluation
from vlmax.evaluation.prompting import Prompting
from vlmax.evaluation.scores.bleu import bleu
from vlmax.evaluation.scores.captions import Captions
from vlmax.evaluation.scores.shapes import TrueWords

NEW = 6
GREEDY = Generation(max_new_tokens=NEW)
EXAMPLES = pictures(11)


def run(family, source, devices=8, told=None, **changes):
    """What is kept, and the scores."""
    kept = {}
    given = context(family, devices, keep=kept.__setitem__, log=(told if told is not None else []).append)
    settings = {"prompt": "abc", "settings": GREEDY, "batch_size": 8, **changes}
    evaluation = Captioning(source, prompting(family), **settings)
    evaluation.check(given.mesh)
    scores = evaluation.run(given)
    return kept["captions"], scores


def expected(family, examples):
    """The captions the slow way."""
    prompt = [1, 3, 4, 5] if family != "t5" else [3, 4, 5, 2]
    texts = [greedy(family, example.image, prompt, NEW) for example in examples]
    return [Letters().decode(text).strip() for text in texts]


@pytest.mark.parametrize("family", ["bert", "opt", "t5"])
def test_captions_are_those_of_each_picture_alone_also_in_a_ragged_last_batch(family):
    kept, scores = run(family, Pictures(EXAMPLES))
    wanted = expected(family, EXAMPLES)
    assert [row["caption"] for row in kept] == wanted and len(set(wanted)) > 5
    assert [row["image_id"] for row in kept] == [100 + i for i in range(11)]
    one, _ = run(family, Pictures(EXAMPLES), devices=1)
    assert one == kept
    assert scores["eval/captions/images"] == 11
    by_hand = bleu([text.lower() for text in wanted], [example.texts for example in EXAMPLES])
    if all(text.isalpha() for text in wanted):
        assert scores["eval/captions/bleu_1"] == pytest.approx(by_hand["bleu_1"].value)
    assert set(scores) == {f"eval/captions/{name}" for name in
                           ("images", "words", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")}  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 2, 1, 1), (2, 2, 2, 1)])
def test_a_mesh_changes_no_caption(shape):
    settings = dataclasses.replace(GREEDY, beams=2)
    plain, _ = run("bert", Pictures(EXAMPLES), settings=settings)
    kept = {}
    evaluation = Captioning(Pictures(EXAMPLES), prompting("bert"), prompt="abc", settings=settings, batch_size=8)
    with meshed(shape) as mesh:
        evaluation.run(dataclasses.replace(context("bert", keep=kept.__setitem__), mesh=mesh))
    assert kept["captions"] == plain


def test_damaged_pictures_are_told_and_left_out():
    told = []
    kept, scores = run("bert", Pictures(EXAMPLES, broken=(0, 9)), told=told)
    sound = [e for i, e in enumerate(EXAMPLES) if i not in (0, 9)]
    assert [row["caption"] for row in kept] == expected("bert", sound)
    assert scores["eval/captions/images"] == 9
    assert told == ["evaluation 'captions': 2 of 11 records are damaged and are not scored"]


def test_drawn_captions_differ_from_batch_to_batch_and_not_from_run_to_run():
    same = tuple(dataclasses.replace(EXAMPLES[0], fields={"image_id": i}) for i in range(16))
    drawn = Generation(max_new_tokens=NEW, temperature=1.0, top_p=0.9, seed=3)
    first, _ = run("bert", Pictures(same), settings=drawn, scores=())
    again, _ = run("bert", Pictures(same), settings=drawn, scores=())
    texts = [row["caption"] for row in first]
    assert first == again and texts[:8] != texts[8:]


def test_captions_of_shapes_are_held_against_the_scene():
    source = Shapes("test", 8, size=24)
    given = [source.open()[i] for i in range(8)]
    facts = [TrueWords().reads(example) for example in given]
    right = tuple(full_captions(source.scene(i))[0] for i in range(8))
    wrong = (*right[1:], right[0])
    found = TrueWords().score(Captions(right[:4] + wrong[4:], ((),) * 8), facts)["true"]
    assert found.value == 0.5 and found.images.tolist() == [1] * 4 + [0] * 4
    with pytest.raises(InputError, match="has no scene"):
        TrueWords().reads(EXAMPLES[0])


def test_it_is_an_evaluation_and_says_what_it_needs():
    evaluation = Captioning(Pictures(EXAMPLES), prompting("bert"), batch_size=8)
    assert isinstance(evaluation, Evaluation)
    mesh = context("bert").mesh
    with pytest.raises(InputError, match="batch_size 12 does not divide"):
        dataclasses.replace(evaluation, batch_size=12).check(mesh)
    with pytest.raises(InputError, match=r"prompting.begin names 'abc', which the tokenizer reads as 3 tokens"):
        dataclasses.replace(evaluation, prompting=Prompting(Letters(), begin="abc")).check(mesh)
    with pytest.raises(InputError, match=r"prompting.closed is True"):
        dataclasses.replace(evaluation, prompting=Prompting(Letters(eos=None), closed=True)).check(mesh)
    with pytest.raises(InputError, match="has no scene"):
        dataclasses.replace(evaluation, scores=(TrueWords(),)).check(mesh)
    twice = Pictures(tuple(dataclasses.replace(e, fields={"image_id": 7}) for e in EXAMPLES))
    with pytest.raises(InputError, match="image 7 more than once"):
        run("bert", twice)
    bare = Pictures((*EXAMPLES[:3], dataclasses.replace(EXAMPLES[3], texts=())))
    with pytest.raises(InputError, match="image 103 of the reference has no text"):
        run("bert", bare)
