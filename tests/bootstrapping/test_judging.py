"""Captioner and filter of a few parameters, against the slow way, picture by picture."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.bootstrapping.stand_in import mesh
from tests.data.stand_ins import Letters
from tests.evaluation import tiny_writer
from tests.evaluation.stand_in import Pictures
from tests.evaluation.tiny_writer import TinyWriter, greedy, pictures, prompting, weights
from vlmax.bootstrapping.bootstrapping import Asked, bootstrap, sizes
from vlmax.bootstrapping.judging import CaptionerAndFilter
from vlmax.bootstrapping.report import provenance
from vlmax.data.cleaning import CleanCaption
from vlmax.data.images import ImageTransform, Squash
from vlmax.data.pipeline import EvaluationPipeline
from vlmax.data.preprocess import ImageOnly, ImageText
from vlmax.decoding.settings import Generation
from vlmax.errors import InputError, RunFailed
from vlmax.evaluation.captioning import Captioning
from vlmax.evaluation.features import batch_spec

NEW = 6
SMALL, LARGE = ImageTransform(Squash(2)), ImageTransform(Squash(4))
EXAMPLES = pictures(11)


@dataclasses.dataclass(frozen=True)
class TinyFilter:
    """The logit is a product of what the picture is like and how many letters of the text lie beyond `k`."""

    def image_tokens(self, params, carried, image):
        return image.astype(jnp.float32).mean(axis=(1, 2))[:, None] / 255

    def match(self, params, carried, image_tokens, text):
        late = ((text > 13) * (text < 29)).sum(axis=1)
        return params["scale"] * (image_tokens[:, 0] @ jnp.array([1.0, -2.0, 1.5])) * (late - 1.5)

    def match_probability(self, params, carried, image_tokens, text):
        return jax.nn.sigmoid(self.match(params, carried, image_tokens, text))

    def image_features(self, params, carried, image):
        raise NotImplementedError

    def text_features(self, params, carried, text):
        raise NotImplementedError


class Run(NamedTuple):
    system: Any
    preprocess: Any
    image: ImageTransform
    params: Any
    carried: Any
    clean: Any = None


def judge(devices=2, family="opt", captioner_image=SMALL, filter_image=SMALL, texts=2, clean=None, **settings):
    captioning = Captioning(
        Pictures(EXAMPLES),
        prompting(family),
        prompt="abc",
        settings=Generation(max_new_tokens=NEW, **settings),
        scores=(),
    )
    captioner = Run(TinyWriter(family), None, captioner_image, weights(family), {})
    reads = ImageText(filter_image, Letters(), length=12)
    looks = Run(TinyFilter(), reads, filter_image, {"scale": np.float32(3)}, {}, clean)
    return CaptionerAndFilter(mesh(devices), captioner, looks, captioning, texts)


def verdicts(made, devices=2, batch_size=8, seed=0, source=None):
    sharding = jax.sharding.NamedSharding(mesh(devices), batch_spec(mesh(devices)))
    with EvaluationPipeline(source or Pictures(EXAMPLES), made.preprocess, batch_size, sharding) as pipeline:
        return [made(batch.arrays, seed) for batch in pipeline]


def probability(picture, text):
    tokens = ImageText(SMALL, Letters(), length=12).tokenize([text])
    system, params = TinyFilter(), {"scale": np.float32(3)}
    return float(system.match_probability(params, {}, system.image_tokens(params, {}, picture[None]), tokens)[0])


@pytest.mark.parametrize("devices", [1, 8])
def test_what_is_written_and_how_all_texts_score(devices):
    found = verdicts(judge(devices), devices)
    assert [v.valid.tolist() for v in found] == [[True] * 8, [True] * 3 + [False] * 5]
    rows = [
        (w, web, s) for v in found for w, web, s, ok in zip(v.written, v.web, v.synthetic, v.valid, strict=True) if ok
    ]
    assert len(rows) == 11
    for example, (written, web, synthetic) in zip(EXAMPLES, rows, strict=True):
        text = Letters().decode(greedy("opt", example.image, [1, 3, 4, 5], NEW)).strip()
        assert written == text
        np.testing.assert_allclose(web, [probability(example.image, t) for t in example.texts], rtol=1e-5)
        np.testing.assert_allclose(synthetic, probability(example.image, text), rtol=1e-5)
    assert len({row[0] for row in rows}) > 2 and np.std([row[1] for row in rows], axis=0).min() > 0.05


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_kinds_of_decoders_write_too(family):
    found = verdicts(judge(family=family))[0]
    prompt = [1, 3, 4, 5] if family == "bert" else [3, 4, 5, 2]
    wanted = [Letters().decode(greedy(family, e.image, prompt, NEW)).strip() for e in EXAMPLES[:8]]
    assert found.written == wanted


def test_captioner_and_filter_may_see_pictures_of_different_sizes():
    made = judge(filter_image=LARGE)
    assert made.preprocess.features()["captioner_image"].shape == (2, 2, 3)
    assert made.preprocess.features()["image"].shape == (4, 4, 3)
    assert verdicts(made)[0].written == verdicts(judge())[0].written
    assert "captioner_image" not in judge().preprocess.features()


def test_texts_are_drawn_by_the_seed_alone():
    made = judge(temperature=1.0, top_p=0.9)
    first, again, other = (verdicts(made, seed=seed)[0].written for seed in (3, 3, 4))
    assert first == again != other


def test_the_filter_reads_texts_as_it_was_trained_to():
    shouted = tuple(dataclasses.replace(e, texts=tuple(f"{t.upper()}!" for t in e.texts)) for e in EXAMPLES)
    plain = verdicts(judge())[0].web
    np.testing.assert_array_equal(verdicts(judge(clean=CleanCaption()), source=Pictures(shouted))[0].web, plain)
    assert not np.array_equal(verdicts(judge(), source=Pictures(shouted))[0].web, plain)


def test_a_filter_that_gives_no_numbers_ends_the_work():
    made = judge()
    made._judge = made._judge._replace(params={"scale": np.float32("nan")})
    with pytest.raises(RunFailed, match="no numbers"):
        verdicts(made)


def test_a_system_that_cannot_do_its_part_is_refused():
    captioning = judge()._captioning
    good = Run(TinyWriter("bert"), None, SMALL, weights("bert"), {})
    looks = Run(TinyFilter(), ImageText(SMALL, Letters(), length=12), SMALL, {}, {})
    for captioner, filters, told in [
        (looks, looks, "--captioner: the run is of a TinyFilter, and must be of a system that writes"),
        (good, good, "--filter: the run is of a TinyWriter, and must be of a system that judges pairs"),
        (good, looks._replace(preprocess=ImageOnly(SMALL)), "--filter: its preprocess, ImageOnly, cannot read a text"),
    ]:
        with pytest.raises(InputError, match=told):
            CaptionerAndFilter(mesh(), captioner, filters, captioning)


def test_the_new_set_has_what_the_judge_kept(tmp_path):
    source = Pictures(EXAMPLES, broken=(4,))
    shards, ends = sizes(11, 4, 4)
    asked = Asked("s", 11, "set", "train", shards, False, "c", "f", "abc", "", 0.5, 2, 4, 0, "image_id")
    made = bootstrap(source, judge(), asked, ends, tmp_path, mesh())
    lines = {line["index"]: line for line in provenance(tmp_path, asked)}
    assert sorted(lines) == [i for i in range(11) if i != 4] and made.damaged == 1
    written = tiny_writer.greedy("opt", EXAMPLES[9].image, [1, 3, 4, 5], NEW)
    assert lines[9]["texts"][-1]["text"] == Letters().decode(written).strip()
    kept = [i for i, line in lines.items() if any(t["kept"] for t in line["texts"])]
    assert made.written == len(kept) > 0
    for line in lines.values():
        for text in line["texts"]:
            if text["text"].strip():
                score = probability(EXAMPLES[line["index"]].image, text["text"])
                assert text["score"] == pytest.approx(score, rel=1e-4, abs=1e-5) and text["kept"] == (score >= 0.5)
