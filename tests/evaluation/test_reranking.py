"""Re-ranking against the whole matrices of similarities and logits, in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation import stand_in
from tests.evaluation.stand_in import Pictures, random_pictures
from vlmax.errors import InputError
from vlmax.evaluation.evaluation import Evaluation
from vlmax.evaluation.reranking import Pairs, Reranking

WEIGHTS = np.random.default_rng(3).standard_normal((stand_in.CONTEXT, 3)).astype(np.float32)


@jax.jit
def image_tokens(images):
    return images.reshape(len(images), 4, 3).astype(jnp.float32) / 255 - 0.5


@jax.jit
def match(tokens, text):
    words = (text % 13).astype(jnp.float32) @ WEIGHTS / 10
    return jnp.sin(jnp.einsum("bnd,bd->bn", tokens, words)).sum(axis=1)


def context(devices=8, **changes):
    return stand_in.context(devices, image_tokens=image_tokens, match=match, **changes)


def reference(examples, most, k):
    """The scores as BLIP computes them: -100 for all but the k nearest, whose logit is added."""
    captions = [e.texts[:most] for e in examples]
    texts = [text for of_one in captions for text in of_one]
    owner = np.repeat(np.arange(len(examples)), [len(c) for c in captions])
    pixels = np.stack([e.image for e in examples])
    itc = stand_in.image_features(pixels) @ stand_in.text_features(texts).T
    itm = np.array([match(image_tokens(np.repeat(p[None], len(texts), 0)), stand_in.tokenize(texts)) for p in pixels])
    found = {"images": len(examples), "texts": len(texts)}
    asked = np.zeros(itc.shape, bool)
    for way, scores, logits, right in (
        ("image_to_text", itc, itm, owner[None] == np.arange(len(examples))[:, None]),
        ("text_to_image", itc.T, itm.T, owner[:, None] == np.arange(len(examples))[None]),
    ):
        ranked = np.full(scores.shape, -100.0)
        for row, own in enumerate(np.argsort(-scores, axis=1)[:, :k]):
            ranked[row, own] = scores[row, own] + logits[row, own]
            (asked if way == "image_to_text" else asked.T)[row, own] = True
        for prefix, matrix in (("", ranked), ("unranked_", scores)):
            best = np.where(right, matrix, -np.inf).max(1, keepdims=True)
            above, tied = (~right & (matrix > best)).sum(1), (~right & (matrix == best)).sum(1)
            for n in (1, 5, 10):
                found[f"{prefix}{way}_r{n}"] = np.clip((n - above) / (tied + 1), 0, 1).mean()
    return {f"eval/reranked/{name}": value for name, value in {**found, "pairs": asked.sum()}.items()}


@settings(max_examples=6, deadline=None)
@given(count=st.integers(1, 37), seed=st.integers(0, 99), k=st.integers(1, 40))
def test_scores_equal_those_of_the_whole_matrices(count, seed, k):
    examples = random_pictures(count, seed, captions=lambda rng: rng.integers(1, 4))
    evaluation = Reranking(Pictures(examples), captions=2, k_test=k, batch_size=16, images_at_once=8, texts_at_once=4)
    wanted = reference(examples, 2, k)
    for devices in (1, 8):
        assert evaluation.run(context(devices)) == pytest.approx(wanted, abs=1e-9)


def test_it_runs_under_a_transfer_guard_and_without_damaged_records():
    examples = random_pictures(21, 3)
    told = []
    evaluation = Reranking(Pictures(examples, broken=(0, 20)), captions=1, k_test=5, batch_size=8, images_at_once=8)
    assert isinstance(evaluation, Evaluation)
    with jax.transfer_guard("disallow"):
        found = evaluation.run(context(log=told.append))
    assert found == pytest.approx(reference(examples[1:20], 1, 5), abs=1e-9)
    assert told == ["evaluation 'reranked': 2 of 21 records are damaged and are not scored"]


def test_tokens_of_an_image_are_computed_once_and_never_all_at_once():
    seen = []

    def counted(images):
        seen.append(np.asarray(images))
        return image_tokens(images)

    examples = random_pictures(20, 4)
    Reranking(Pictures(examples), captions=1, k_test=3, batch_size=8, images_at_once=8, texts_at_once=2).run(
        dataclasses.replace(context(), image_tokens=counted)
    )
    assert [len(images) for images in seen] == [8, 8, 8]
    read = np.concatenate(seen).reshape(24, -1)
    assert len(np.unique(read[:20], axis=0)) == 20


def test_a_broken_logit_never_helps():
    evaluation = Reranking(Pictures(random_pictures(40, 1)), captions=1, k_test=20, batch_size=8, images_at_once=8)
    broken = jax.jit(lambda tokens, text: jnp.full(len(text), jnp.nan))
    found = evaluation.run(dataclasses.replace(context(), match=broken))
    assert found["eval/reranked/image_to_text_r10"] == found["eval/reranked/text_to_image_r10"] == 0
    features = jax.jit(lambda x: jnp.full((x.shape[0], 8), jnp.nan))
    found = evaluation.run(dataclasses.replace(context(), embed_images=features))
    assert found["eval/reranked/image_to_text_r10"] == 0


def test_images_with_several_features_are_scored_by_the_best_of_them():
    several = jax.jit(lambda x: jnp.stack([stand_in._embed_images(x), -stand_in._embed_images(x)], axis=1))
    examples = random_pictures(30, 2)
    images = stand_in.image_features(np.stack([e.image for e in examples]))
    texts = stand_in.text_features([e.texts[0] for e in examples])
    scores = np.abs(images @ texts.T)
    evaluation = Reranking(Pictures(examples), captions=1, k_test=4, batch_size=8, images_at_once=8)
    found = evaluation.run(dataclasses.replace(context(), embed_images=several))
    own = np.diagonal(scores)
    wanted = {"image_to_text": (scores > own[:, None]).sum(1), "text_to_image": (scores > own[None]).sum(0)}
    for way, above in wanted.items():
        assert found[f"eval/reranked/unranked_{way}_r5"] == pytest.approx((above < 5).mean())


def test_each_pair_is_read_once():
    pairs = Pairs(np.array([[0, 1], [2, -1]]), np.array([[0], [1], [1]]))
    assert list(zip(pairs.image.tolist(), pairs.text.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1), (1, 2)]
    assert pairs.of_images.tolist() == [[0, 1], [3, 0]] and pairs.of_texts.tolist() == [[0], [2], [3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "its batch_size 12 does not divide"),
        ({"images_at_once": 12}, "its images_at_once 12 does not divide"),
        ({"k_test": 0}, "k_test is 0"),
        ({"prompt": "a photo of"}, "prompt 'a photo of'"),
    ],
)
def test_wrong_settings_say_what_to_change(changes, message):
    evaluation = Reranking(Pictures(random_pictures(3, 0)), batch_size=8, images_at_once=8)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(evaluation, **changes).check(context().mesh)
