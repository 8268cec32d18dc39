from __future__ import annotations

import numpy as np
import pytest

from vlmax.interop.layout import fit, parsed

CASES = [
    ("D F = F D", (3, 5), {}, (5, 3), lambda x: x.T),
    ("D H K = (H K) D", (4, 2, 3), {}, (6, 4), lambda x: x.T.reshape(4, 2, 3)),
    ("H K = (H K)", (2, 3), {}, (6,), lambda x: x.reshape(2, 3)),
    ("H K D = D (H K)", (2, 3, 4), {}, (4, 6), lambda x: x.T.reshape(2, 3, 4)),
    (
        "(y x c) D = D c y x",
        (2 * 3 * 5, 7),
        {"y": 2, "x": 3, "c": 5},
        (7, 5, 2, 3),
        lambda x: x.transpose(2, 3, 1, 0).reshape(30, 7),
    ),
    ("y x i o = o i y x", (2, 3, 4, 5), {}, (5, 4, 2, 3), lambda x: x.transpose(2, 3, 1, 0)),
    ("D = 1 1 D", (6,), {}, (1, 1, 6), lambda x: x[0, 0]),
    ("= 1", (), {}, (1,), lambda x: x[0]),
    ("=", (), {}, (), lambda x: x),
    ("V D = V D", (8, 3), {"V": 6}, (6, 3), lambda x: x),
]


@pytest.mark.parametrize(("layout", "own", "given", "foreign", "made"), CASES, ids=[case[0] for case in CASES])
def test_both_directions(layout, own, given, foreign, made):
    fitted = fit(layout, own, given)
    assert fitted.foreign_shape == foreign
    tensor = np.random.default_rng(0).normal(size=foreign)
    ours = fitted.own(tensor)
    np.testing.assert_array_equal(ours, made(tensor))
    assert ours.shape == fitted.own_shape
    back = np.zeros(foreign)
    fitted.put(ours, back)
    np.testing.assert_array_equal(back, tensor)


@pytest.mark.parametrize("layout", ["D H K = (3 H K) D", "D H K = D (3 H K)"])
def test_three_in_one(layout):
    parts = [fit(layout, (4, 2, 3), {}, part) for part in range(3)]
    tensor = np.random.default_rng(0).normal(size=parts[0].foreign_shape)
    thirds = np.split(tensor, 3, axis=0 if layout.endswith(") D") else 1)
    back = np.zeros_like(tensor)
    for part, third in zip(parts, thirds, strict=True):
        wanted = third.T.reshape(4, 2, 3) if layout.endswith(") D") else third.reshape(4, 2, 3)
        np.testing.assert_array_equal(part.own(tensor), wanted)
        part.put(part.own(tensor), back)
    np.testing.assert_array_equal(back, tensor)
    assert parts[0].parts == 3


@pytest.mark.parametrize("layout", ["D F = F", "D D = D D", "D = F"])
def test_a_layout_that_makes_no_sense(layout):
    with pytest.raises(ValueError, match="layout"):
        parsed(layout)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="dimensions"):
        fit("D F = F D", (3,), {})
    with pytest.raises(ValueError, match="do not make 10"):
        fit("(y x) D = D y x", (10, 2), {"y": 3, "x": 3})
