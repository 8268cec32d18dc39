import pytest

from tests.sharding.parameters import boxed
from vlmax.sharding.mesh import Mesh
from vlmax.sharding.rules import rule_table, shardings
from vlmax.sharding.tables import sharding_table, trainable_table
from vlmax.training import patterns


def test_the_sharding_table_counts_bytes_per_device():
    mesh = Mesh(2, 2, 2).build()
    table = sharding_table(boxed(), shardings(boxed(), mesh, rule_table((), mesh)))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["image/blocks/up/kernel"] == (
        "[3, 32, 64]", "float32", "layers embed mlp", "- fsdp tensor", 3 * 16 * 32 * 4
    )  # fmt: skip
    assert rows["image/blocks/norm/scale"][3] == "replicated"
    assert rows["all parameters"][-1] == sum(row[-1] for name, row in rows.items() if name != "all parameters")
    assert all(len(row) == len(table.columns) for row in table.rows)
    lines = table.text().splitlines()
    assert lines[0] == "sharding"
    assert any("image/blocks/up/kernel" in line and "6,144" in line for line in lines)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trainable_table_counts_every_parameter_once(dtype):
    leaves = patterns.flatten(boxed())
    frozen = {path: path.startswith("image/") for path in leaves}
    parts = {"image": patterns.hits("image/.*", leaves, "parts"), "text": patterns.hits("text/.*", leaves, "parts")}
    rows = {row[0]: row[1:] for row in trainable_table(boxed(), frozen, parts, dtype).rows}
    image = 48 * 32 + 6 * 32 + 3 * (32 + 32 * 64 + 64 + 32 * 64) + 9 * 4 * 8
    assert rows["image"] == (0, 0, image, image * (4 if dtype == "float32" else 2))
    assert rows["text"] == (40 * 32, 40 * 32 * 4, 0, 0)
    assert rows["(no part)"] == (32 * 16 + 1, (32 * 16 + 1) * 4, 0, 0)
    assert rows["all"] == tuple(sum(rows[part][i] for part in ("image", "text", "(no part)")) for i in range(4))
