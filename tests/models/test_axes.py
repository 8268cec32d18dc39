"""Logical axes on a mesh of eight devices."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from vlmax.models.layers.axes import constrain, mesh_axes

RULES = (
    ("batch", ("data", "fsdp")),
    ("tokens", "sequence"),
    ("heads", "tensor"),
    ("mlp", ("tensor",)),
    ("kernel", None),
)


def mesh(*shape):
    return jax.make_mesh(shape, ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)


def test_mesh_axes_names_those_that_split():
    assert mesh_axes("batch") == ()
    with nn.logical_axis_rules(RULES):
        assert mesh_axes("batch") == ()
        with jax.set_mesh(mesh(2, 2, 2, 1)):
            assert mesh_axes("batch") == ("data", "fsdp")
            assert mesh_axes("heads") == mesh_axes("mlp") == ("tensor",)
            assert mesh_axes("tokens") == mesh_axes("kernel") == mesh_axes("unknown") == ()
        with jax.set_mesh(mesh(1, 8, 1, 1)):
            assert mesh_axes("batch") == ("fsdp",)


def spec_of(x, *names, shape=(2, 2, 2, 1)):
    """The layout that a jitted computation gives to `x`, and its values."""
    with jax.set_mesh(mesh(*shape)), nn.logical_axis_rules(RULES):
        out = jax.jit(lambda x: constrain(x * 2, *names))(x)
    np.testing.assert_array_equal(out, x * 2)
    return out.sharding.spec


def test_constrain_lays_out_and_changes_no_value():
    x = np.arange(8 * 6 * 4.0, dtype=np.float32).reshape(8, 6, 4)
    same = lambda a, b: jax.sharding.NamedSharding(mesh(2, 2, 2, 1), a).is_equivalent_to(  # noqa: E731
        jax.sharding.NamedSharding(mesh(2, 2, 2, 1), b), 3
    )
    assert same(spec_of(x, "batch", "tokens", "heads"), PartitionSpec(("data", "fsdp"), None, "tensor"))
    assert same(
        spec_of(x, None, "mlp", "heads"), PartitionSpec(None, "tensor", None)
    )  # a mesh axis splits one dimension


def test_a_dimension_that_does_not_divide_stays_whole():
    spec = spec_of(np.ones((8, 5), np.float32), "batch", "tokens", shape=(2, 1, 1, 4))
    assert tuple(spec)[:1] in (("data",), (("data",),)) and all(entry is None for entry in tuple(spec)[1:])


def test_without_a_mesh_it_does_nothing_but_count_names():
    x = np.ones((2, 3))
    assert constrain(x, "batch", "tokens") is x
    with pytest.raises(ValueError, match="2 axis names"):
        constrain(np.ones(3), "batch", "tokens")
