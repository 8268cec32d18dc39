import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vlmax.data.digest import digest, digest_hex, digest_numpy, key_hash

KEYS = np.stack([key_hash("source", str(i)) for i in range(64)])


def test_device_and_host_agree_on_every_sharding():
    expected = digest_hex(digest_numpy(KEYS))
    two = ("a", "b")
    for shape, names, spec in (((1,), ("a",), "a"), ((8,), ("a",), "a"), ((2, 4), two, two), ((2, 4), two, "b")):
        devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
        sharding = NamedSharding(jax.sharding.Mesh(devices, names), PartitionSpec(spec))
        assert digest_hex(jax.jit(digest)(jax.device_put(KEYS, sharding))) == expected
    assert len(expected) == 16


def test_order_and_keys_count():
    swapped = KEYS.copy()
    swapped[[3, 40]] = swapped[[40, 3]]
    other = KEYS.copy()
    other[0] = key_hash("source", "another")
    repeated = KEYS.copy()
    repeated[1] = repeated[0]
    seen = {digest_hex(digest_numpy(k)) for k in (KEYS, swapped, other, repeated, KEYS[::-1], KEYS[:63])}
    assert len(seen) == 6


def test_every_swap_of_neighbours_is_seen():
    seen = {digest_hex(digest_numpy(KEYS))}
    for row in range(63):
        order = np.arange(64)
        order[[row, row + 1]] = row + 1, row
        seen.add(digest_hex(digest_numpy(KEYS[order])))
    assert len(seen) == 64


def test_key_hash_names_source_and_key():
    assert key_hash("a", "b").dtype == np.uint32
    assert len({tuple(key_hash(s, k).tolist()) for s, k in (("a", "bc"), ("ab", "c"), ("abc", ""), ("a", "b"))}) == 4
    assert key_hash("numbers", "7").tolist() == [3502132275, 1543017557]


def test_hexadecimal():
    assert digest_hex(jnp.array([1, 0xFFFFFFFF], jnp.uint32)) == "00000001ffffffff"
