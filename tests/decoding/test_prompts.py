from __future__ import annotations

import numpy as np
import pytest

from vlmax.decoding.prompts import bucket, padded
from vlmax.errors import InputError


def test_buckets_are_few_and_never_half_again_as_long():
    sizes = [bucket(length) for length in range(1, 3000)]
    assert sorted(set(sizes))[:6] == [16, 24, 32, 48, 64, 96] and len(set(sizes)) == 16
    assert all(size >= length for length, size in enumerate(sizes, 1))
    assert all(size <= 1.5 * length for length, size in enumerate(sizes, 1) if length >= 16)


def test_prompts_are_padded_at_the_left():
    prompt = padded([[1, 2, 3], [4]], vocab=9, longest=30, at_most=30)
    assert prompt.inputs.shape == (2, 16) and prompt.inputs.dtype == np.int32
    assert prompt.inputs[:, -3:].tolist() == [[1, 2, 3], [0, 0, 4]]
    assert prompt.valid.sum(axis=1).tolist() == [3, 1] and prompt.valid[:, -1].tolist() == [1, 1]
    assert padded([[1, 2, 3]], vocab=9, longest=3, at_most=12).inputs.shape == (1, 12)


def test_embeddings_are_padded_alike():
    rows = [np.ones((2, 5), np.float32), np.full((17, 5), 2, np.float32)]
    prompt = padded(rows, vocab=9, longest=30, at_most=30)
    assert prompt.inputs.shape == (2, 24, 5) and prompt.inputs.dtype == np.float32
    assert prompt.inputs[0].sum() == 10 and prompt.valid.sum(axis=1).tolist() == [2, 17]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt"),
        ([[1], []], "prompt 1 has no tokens"),
        ([[1], [1] * 8], "prompt 1 has 8 tokens, and the model has room for 7"),
        ([[1, 9]], "token 9, but the vocabulary's are 0 to 8"),
        ([[-1]], "token -1"),
        ([[0.5]], "prompt 0 has shape"),
        ([[1], np.ones((2, 3))], "some embeddings"),
        ([np.ones((2, 4)), np.ones((2, 3))], "different widths"),
    ],
)
def test_what_cannot_be_read_is_refused(prompts, message):
    with pytest.raises(InputError, match=message):
        padded(prompts, vocab=9, longest=7, at_most=16)
