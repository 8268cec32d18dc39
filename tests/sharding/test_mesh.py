import math
import types

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmax.errors import InputError
from vlmax.sharding.mesh import AXES, Mesh


def devices_on(slices, each, process=lambda i: 0):
    """Devices as a platform with slices has them; those of the slices lie mixed in the list."""
    return [
        types.SimpleNamespace(id=i, slice_index=i % slices, process_index=process(i), platform="cpu", device_kind="x")
        for i in range(slices * each)
    ]


def test_the_default_mesh_is_all_data():
    mesh = Mesh().build()
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    ("mesh", "shape"),
    [
        (Mesh(2, 2, 2), (2, 2, 2, 1)),
        (Mesh(fsdp=4), (2, 4, 1, 1)),
        (Mesh(data=1, fsdp=-1), (1, 8, 1, 1)),
        (Mesh(data=2, sequence=-1), (2, 1, 1, 4)),
    ],
)
def test_shapes(mesh, shape):
    built = mesh.build()
    assert built.devices.shape == shape
    assert set(built.devices.ravel()) == set(jax.devices())


def test_fewer_devices_than_the_machine_has():
    assert Mesh(fsdp=2).build(jax.devices()[:4]).devices.shape == (2, 2, 1, 1)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (Mesh(3), "data=3 x fsdp=1 x tensor=1 x sequence=1 does not multiply .* 8; the nearest that does: mesh.data="),
        (Mesh(fsdp=3), r"data=-1 x fsdp=3 .*nearest that does: mesh\.fsdp=4"),
        (Mesh(2, 3, 2), r"nearest that does: mesh\.fsdp=2"),
        (Mesh(16), r"nearest that does: mesh\.data=8"),
        (Mesh(fsdp=16), r"nearest that does: mesh\.fsdp=8"),
        (Mesh(-1, -1), r"mesh\.data and mesh\.fsdp are -1"),
        (Mesh(0), r"mesh\.data is 0; it must be at least 1, or -1"),
        (Mesh(slices=-1), r"mesh\.slices is -1; it must be at least 1$"),
        (
            Mesh(data=2, fsdp=4, slices=4),
            r"data 2, which does not divide by mesh\.slices 4; .*mesh\.data=4, mesh\.fsdp=2",
        ),
        (Mesh(slices=3), r"8 devices make no 3 equal slices; set mesh\.slices=(2|4)"),
    ],
)
def test_a_mesh_that_does_not_fit_names_the_nearest_that_does(mesh, message):
    with pytest.raises(InputError, match=message):
        mesh.build()


@given(devices=st.integers(1, 96), sizes=st.tuples(*[st.sampled_from([-1, 1, 2, 3, 4, 6, 8, 16])] * 4))
def test_sizes_multiply_to_the_devices_or_are_refused(devices, sizes):
    try:
        found = Mesh(*sizes).sizes(devices)
    except InputError:
        fixed = math.prod(size for size in sizes if size != -1)
        assert sizes.count(-1) > 1 or devices % fixed or (-1 not in sizes and fixed != devices)
    else:
        assert math.prod(found.values()) == devices
        assert all(found[axis] == size for axis, size in zip(AXES, sizes, strict=True) if size != -1)


def test_data_crosses_slices_and_nothing_else_does():
    groups = Mesh(data=-1, fsdp=2, slices=2)._groups(devices_on(2, 4))
    assert [[d.slice_index for d in group] for group in groups] == [[0] * 4, [1] * 4]


def test_processes_are_the_slices_where_the_platform_has_none():
    devices = devices_on(1, 8, process=lambda i: i % 2)
    for device in devices:
        del device.slice_index
    groups = Mesh(slices=2)._groups(devices)
    assert [[d.process_index for d in group] for group in groups] == [[0] * 4, [1] * 4]


def test_a_lone_process_is_cut_into_runs():
    mesh = Mesh(data=4, fsdp=2, slices=2).build()
    assert [[d.id for d in row.ravel()] for row in mesh.devices] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_the_number_of_slices_must_be_the_real_one():
    with pytest.raises(InputError, match=r"lie on 2 slices and mesh\.slices is 1; set mesh\.slices to 2"):
        Mesh()._groups(devices_on(2, 4))
    with pytest.raises(InputError, match=r"mesh\.slices is 2, but the 8 devices belong to 1 slice"):
        Mesh(slices=2)._groups(devices_on(1, 8))
