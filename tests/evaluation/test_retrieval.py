import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation import stand_in
from tests.evaluation.stand_in import Pictures, context, random_pictures
from vlmax.data.example import Example
from vlmax.errors import InputError
from vlmax.evaluation.evaluation import Evaluation
from vlmax.evaluation.retrieval import Retrieval


def reference(examples, most, prompt="{}"):
    """The scores over the whole matrix of scores, in NumPy."""
    captions = [e.texts[:most] for e in examples]
    images = stand_in.image_features(np.stack([e.image for e in examples]))
    texts = stand_in.text_features([prompt.replace("{}", t) for c in captions for t in c])
    owner = np.repeat(np.arange(len(examples)), [len(c) for c in captions])
    scores = images @ texts.T
    own = owner[None] == np.arange(len(images))[:, None]
    best = np.where(own, scores, -np.inf).max(1, keepdims=True)
    i2t = (~own & (scores > best)).sum(1)
    mine = scores[owner, np.arange(len(owner))]
    t2i = (scores > mine[None]).sum(0)
    found = {"images": len(images), "texts": len(texts)}
    for way, rank in (("image_to_text", i2t), ("text_to_image", t2i)):
        found |= {f"{way}_r{k}": (rank < k).mean() for k in (1, 5, 10)}
    return {f"eval/retrieval/{name}": value for name, value in found.items()}


@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 41), seed=st.integers(0, 99))
def test_scores_equal_numpy_for_ragged_sizes_and_several_captions(count, seed):
    examples = random_pictures(count, seed, captions=lambda rng: rng.integers(1, 5))
    evaluation = Retrieval(Pictures(examples), captions=3, batch_size=16)
    wanted = reference(examples, 3)
    for devices in (1, 8):
        assert evaluation.run(context(devices)) == pytest.approx(wanted, abs=1e-12)


def test_it_is_an_evaluation_and_runs_under_a_transfer_guard():
    evaluation = Retrieval(Pictures(random_pictures(20, 0)), batch_size=8)
    assert isinstance(evaluation, Evaluation)
    with jax.transfer_guard("disallow"):
        evaluation.run(context())


def test_damaged_records_are_left_out_and_told():
    examples = random_pictures(21, 3)
    said, seen = [], []
    told = context(log=said.append, record=seen.append)
    found = Retrieval(Pictures(examples, broken=(0, 20)), captions=1, batch_size=8).run(told)
    assert found == pytest.approx(reference(examples[1:20], 1))
    assert said == ["evaluation 'retrieval': 2 of 21 records are damaged and are not scored"]
    assert [d.reason for info in seen for d in info.damaged] == ["zero bytes"] * 2


def test_limit_prompt_and_captions_left_out():
    examples = random_pictures(13, 5, captions=lambda rng: 3)
    said = []
    evaluation = Retrieval(Pictures(examples), captions=2, prompt="{}!", batch_size=8, limit=9)
    found = evaluation.run(context(log=said.append))
    assert found == pytest.approx(reference(examples[:9], 2, "{}!"))
    assert said == ["evaluation 'retrieval': 9 captions beyond their picture's first 2 are not scored"]


def test_a_collapsed_model_scores_chance_and_a_broken_one_nothing():
    evaluation = Retrieval(Pictures(random_pictures(40, 1)), captions=1, batch_size=8)
    same = jax.jit(lambda x: jnp.full((x.shape[0], 8), 8**-0.5))
    found = evaluation.run(context(embed_images=same, embed_texts=same))
    assert found["eval/retrieval/image_to_text_r1"] == pytest.approx(1 / 40)
    assert found["eval/retrieval/text_to_image_r10"] == pytest.approx(10 / 40)
    said = []
    broken = jax.jit(lambda x: jnp.full((x.shape[0], 8), jnp.nan))
    found = evaluation.run(context(embed_images=broken, log=said.append))
    assert found["eval/retrieval/image_to_text_r10"] == found["eval/retrieval/text_to_image_r10"] == 0
    assert said == ["evaluation 'retrieval': 40 of 40 images have features that are not finite"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "batch_size 12 does not divide over the 8 parts.*nearest that does is 16"),
        ({"captions": 0}, "captions is 0"),
        ({"prompt": "a photo of"}, "prompt 'a photo of'"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_wrong_settings_say_what_to_change(changes, message):
    evaluation = Retrieval(Pictures(random_pictures(3, 0)), batch_size=8)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(evaluation, **changes).run(context())


def test_a_source_without_captions_is_an_error():
    source = Pictures((Example("a", np.zeros((2, 2, 3), np.uint8)),))
    with pytest.raises(InputError, match="none of 1 records of 'pictures' can be decoded"):
        Retrieval(source, batch_size=8).run(context())
