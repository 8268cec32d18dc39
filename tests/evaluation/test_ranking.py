import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.stand_in import mesh_of
from vlmax.evaluation.ranking import ranks, recall


def reference(queries, query_ids, gallery, gallery_ids):
    """The definition, over the whole matrix."""
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    right = query_ids[:, None] == gallery_ids[None]
    own = np.where(right, scores, -np.inf).max(1, keepdims=True)
    return (~right & (scores > own)).sum(1), (~right & (scores == own)).sum(1)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    owners=st.integers(1, 23),
    most=st.integers(1, 4),
    chunk=st.sampled_from([1, 5, 16]),
    rows=st.sampled_from([1, 2, 64]),
)
def test_ranks_equal_the_definition_on_any_mesh_and_chunk(seed, owners, most, chunk, rows):
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(owners), rng.integers(1, most + 1, owners))
    # Small whole numbers: every score is exact in float32, and ties are frequent.
    images = rng.integers(-2, 3, (owners, 5)).astype(np.float32)
    texts = rng.integers(-2, 3, (len(ids), 5)).astype(np.float32)
    for one in ((images, np.arange(owners), texts, ids), (texts, ids, images, np.arange(owners))):
        wanted = reference(*one)
        for devices in (1, 8):
            found = ranks(*one, mesh_of(devices), chunk=chunk, rows_per_device=rows)
            np.testing.assert_array_equal(found, wanted)


def test_recall_counts_ties_at_random_order():
    above, tied = np.array([0, 1, 0, 3, 9]), np.array([0, 0, 1, 3, 0])
    assert recall(above, tied, 1) == pytest.approx((1 + 0 + 1 / 2 + 0 + 0) / 5)
    assert recall(above, tied, 5) == pytest.approx((1 + 1 + 1 + 2 / 4 + 0) / 5)


def test_collapsed_features_score_chance():
    same = np.full((40, 8), 8**-0.5, np.float32)
    ids = np.arange(40)
    above, tied = ranks(same, ids, same, ids, mesh_of(8))
    for k in (1, 5, 10):
        assert recall(above, tied, k) == pytest.approx(k / 40)


def test_features_that_are_not_numbers_are_wrong():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((9, 4)).astype(np.float32)
    ids = np.arange(9)
    texts = images.copy()
    texts[3] = np.nan
    above, tied = ranks(images, ids, texts, ids, mesh_of(8))
    assert above[3] == 8 and tied[3] == 0, "its own caption is broken: everything is above"
    assert (above >= 1).all(), "a broken rival stands above every answer"
    above, _ = ranks(np.full_like(images, np.nan), ids, images, ids, mesh_of(8))
    assert (above == 8).all()


def test_a_query_without_an_answer_is_an_error():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"no right answer.*id 7"):
        ranks(x, np.array([0, 7]), x, np.array([0, 1]), mesh_of(1))
