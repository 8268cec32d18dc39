import pytest

from vlmax.errors import InputError
from vlmax.training import patterns

PATHS = ["image/blocks/mlp/kernel", "image/blocks/mlp/bias", "image_projection/kernel", "text/embedding"]


def test_flatten_and_unflatten_are_inverse():
    tree = {"image": {"blocks": {"kernel": 1}, "positions": 2}, "scale": 3}
    assert patterns.flatten(tree) == {"image/blocks/kernel": 1, "image/positions": 2, "scale": 3}
    assert patterns.unflatten(patterns.flatten(tree)) == tree


def test_a_pattern_matches_whole_paths():
    assert patterns.hits("image/.*", PATHS, "f") == PATHS[:2]
    assert patterns.hits(".*kernel", PATHS, "f") == [PATHS[0], PATHS[2]]


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("image", r"whole path, as '\.\*image\.\*' matches 'image/blocks/mlp/kernel'"),
        ("text/embeddings", "did you mean 'text/embedding'"),
        ("image/(", "not a regular expression"),
    ],
)
def test_a_pattern_that_hits_nothing_is_an_error_that_helps(pattern, advice):
    with pytest.raises(InputError, match=advice) as error:
        patterns.hits(pattern, PATHS, "optimizer.frozen[0]")
    assert "optimizer.frozen[0]" in str(error.value)
    assert repr(pattern) in str(error.value)


def test_union_needs_every_pattern_to_hit():
    assert patterns.union(["text/.*", ".*bias"], PATHS, "f") == {PATHS[1], PATHS[3]}
    with pytest.raises(InputError, match=r"f\[1\].*'decoder/\.\*'"):
        patterns.union(["text/.*", "decoder/.*"], PATHS, "f")


def test_the_first_match_counts():
    found = patterns.first_match([(".*bias", 0.0), ("image/.*", 0.5)], PATHS, "f")
    assert found == {PATHS[1]: 0.0, PATHS[0]: 0.5}


def test_a_pattern_that_comes_too_late_is_an_error():
    with pytest.raises(InputError, match=r"f\[1\].*comes too late"):
        patterns.first_match([("image/.*", 0.5), (".*bias", 0.0)], PATHS, "f")
