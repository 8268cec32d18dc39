"""A short hash of which examples a step saw, in order, the same on every mesh and number of hosts.

Each example's (source, key) becomes two uint32 on the host and travels in the batch as `key_hash`. On the device
each is mixed with its row in the global batch and all are added up, wrapping around: addition does not care how the
rows are spread over devices, and the mixed-in row makes the order count.
"""

from __future__ import annotations

import hashlib

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

GOLDEN = 0x9E3779B9


def key_hash(source: str, key: str) -> UInt32[np.ndarray, "2"]:
    """Two uint32 that name an example among all sources (blake2b of source and key)."""
    raw = hashlib.blake2b(f"{source}\0{key}".encode(), digest_size=8).digest()
    return np.frombuffer(raw, "<u4").astype(np.uint32)


def digest(key_hash: UInt32[Array, "B 2"]) -> UInt32[Array, "2"]:
    """The digest of a global batch, for use inside jit; rows may be sharded in any way."""
    return _digest(key_hash, jnp)


def digest_numpy(key_hash: UInt32[np.ndarray, "B 2"]) -> UInt32[np.ndarray, "2"]:
    """What `digest` gives, on the host."""
    return _digest(key_hash, np)


def digest_hex(digest: UInt32[Array, "2"] | UInt32[np.ndarray, "2"]) -> str:
    """Sixteen hexadecimal digits: what `data/digest` in metrics.jsonl is."""
    first, second = np.asarray(digest, np.uint32).tolist()
    return f"{first:08x}{second:08x}"


def _digest(key_hash, np_like):
    row = np_like.arange(key_hash.shape[0], dtype=np_like.uint32) * np_like.uint32(GOLDEN)
    first, second = key_hash[:, 0], key_hash[:, 1]
    one = _mix(_mix(first ^ row, np_like) + second, np_like)
    two = _mix(_mix(second + row, np_like) ^ first, np_like)
    return np_like.stack([one, two], axis=1).sum(axis=0, dtype=np_like.uint32)


def _mix(x, np_like):
    """The finaliser of MurmurHash3."""
    x = (x ^ (x >> np_like.uint32(16))) * np_like.uint32(0x85EBCA6B)
    x = (x ^ (x >> np_like.uint32(13))) * np_like.uint32(0xC2B2AE35)
    return x ^ (x >> np_like.uint32(16))
