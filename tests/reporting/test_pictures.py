import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vlmax.reporting.pictures import contact_sheet, local_rows


def images(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (count, size, size, 3), np.uint8)


def test_pixels_are_shown_as_they_are():
    made = images(3, 32)
    sheet = contact_sheet(made, ["a", "b", "c"])
    factor = 208 // 32
    shown = sheet[12 : 12 + 32 * factor, 12 : 12 + 32 * factor]
    np.testing.assert_array_equal(shown, made[0].repeat(factor, 0).repeat(factor, 1))


def test_captions_stay_in_their_cell_and_are_drawn():
    plain = contact_sheet(images(2, 64), ["", ""])
    long = contact_sheet(images(2, 64), ["word " * 300, "unbreakable" * 40])
    assert long.shape[1] == plain.shape[1] and plain.shape[0] < long.shape[0] < plain.shape[0] + 120
    gap = long[:, 12 + 208 : 12 + 208 + 12]
    assert (gap[:, :-1] == 255).all(), "nothing is drawn between the cells"
    below = long[12 + 192 + 4 :, 12 : 12 + 208]
    assert (below < 100).any()


@pytest.mark.parametrize("size", [1, 17, 224, 512])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_any_size_and_count(size, count):
    sheet = contact_sheet(images(count, size), [f"text {i}" for i in range(count)])
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    assert max(sheet.shape) < 4000


def test_wrong_arrays_are_errors():
    with pytest.raises(ValueError, match="uint8"):
        contact_sheet(images(2, 8).astype(np.float32), ["a", "b"])
    with pytest.raises(ValueError, match="2 images with 1 texts"):
        contact_sheet(images(2, 8), ["a"])


def test_local_rows_takes_each_row_once():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    host = np.arange(16 * 3).reshape(16, 3)
    array = jax.device_put(host, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_array_equal(local_rows(array, 6), host[:6])
    np.testing.assert_array_equal(local_rows(array, 100), host)
    wide = jax.device_put(np.ones((4, 8)), NamedSharding(mesh, PartitionSpec("data", "tensor")))
    with pytest.raises(ValueError, match="beyond its first dimension"):
        local_rows(wide, 2)
