"""BLEU, ROUGE-L and CIDEr against published scores, and the reference implementation over all of COCO val2017."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from tests.shared import shared
from vlmax.evaluation.scores.bleu import Bleu, bleu
from vlmax.evaluation.scores.captions import Captions, CaptionScore
from vlmax.evaluation.scores.cider import CiderD, cider_d
from vlmax.evaluation.scores.ptb import tokenized
from vlmax.evaluation.scores.rouge import RougeL, longest_common, rouge_l

NAMES = {"bleu_1": "Bleu_1", "bleu_2": "Bleu_2", "bleu_3": "Bleu_3", "bleu_4": "Bleu_4", "rouge_l": "ROUGE_L",
         "cider": "CIDEr"}  # fmt: skip


def all_scores(written, references):
    return {
        **bleu(written, references),
        "rouge_l": rouge_l(written, references),
        "cider": cider_d(written, references),
    }


@pytest.fixture(scope="module")
def published():
    return json.loads(shared("data/reference/published.json").read_text())


def test_the_scores_of_nlg_eval(published):
    for case in published["nlg_eval"]["cases"]:
        found = all_scores(case["hyps"], case["refs"])
        for own, theirs in NAMES.items():
            assert found[own].value == pytest.approx(case["expected"][theirs], abs=2e-6), (own, case["hyps"])


def test_the_scores_of_aac_metrics(published):
    case = published["aac_metrics"]
    captions = Captions(tuple(case["hyps"]), tuple(map(tuple, case["refs"])))
    found = CiderD().score(captions, [])["cider"]
    assert round(found.value, 4) == case["expected"]["cider_d"]
    assert found.images.round(4).tolist() == case["expected"]["cider_d_per_sentence"]
    assert round(Bleu().score(captions, [])["bleu_1"].value, 4) == case["expected"]["bleu_1"]


def test_the_counts_of_coco_captions_demo_give_its_bleu(published):
    demo = published["coco_caption_demo"]
    from vlmax.evaluation.scores.bleu import _scores

    counts = demo["bleu_counts"]
    row = np.array([[counts["testlen"], counts["reflen"], *counts["guess"], *counts["correct"]]])
    assert _scores(row)[0].round(3).tolist() == [demo["expected"][f"Bleu_{n}"] for n in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def val2017():
    """The first caption of every image, and the rest, from the reference's tokens."""
    with gzip.open(shared("data/reference/ptb_tokenized_val2017.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    return [row["image_id"] for row in rows], [r["tokenized"][0] for r in rows], [r["tokenized"][1:] for r in rows]


def test_every_digit_over_val2017(val2017):
    ids, written, references = val2017
    wanted = json.loads(shared("data/reference/caption_metrics_pycocoevalcap.json").read_text())["first_vs_rest_all"]
    assert len(ids) == wanted["images"] == 5000
    found = all_scores(written, references)
    for own, theirs in NAMES.items():
        assert found[own].value == pytest.approx(wanted["scores"][theirs], rel=1e-12), own
    places = {image: i for i, image in enumerate(ids)}
    for row in wanted["per_image"]:
        for own, theirs in NAMES.items():
            if theirs in row:
                assert found[own].images[places[row["image_id"]]] == pytest.approx(row[theirs], rel=1e-9), (row, own)


def test_scores_tokenize_what_they_are_given():
    captions = Captions(("A man's dog.",), (("a man 's dog", "A dog, running!"),))
    assert Bleu().score(captions, [])["bleu_1"].value == pytest.approx(1)
    assert RougeL().score(captions, [])["rouge_l"].value == pytest.approx(1)
    for score in (Bleu(), RougeL(), CiderD()):
        assert isinstance(score, CaptionScore)
        score.check()
    assert tokenized("A man's dog.") == "a man 's dog"


def test_a_caption_without_a_word_scores_nothing():
    found = all_scores(["", "a dog"], [["a cat"], ["a dog"]])
    assert found["bleu_4"].images[0] < 1e-3 and found["rouge_l"].images[0] == 0 and found["cider"].images[0] == 0
    assert found["cider"].images[1] > 0


def test_the_longest_common_sequence_has_gaps():
    assert longest_common("abcde", "acxe") == 3
    assert longest_common("ab", "ba") == 1
