"""Which kernel computes attention: splash attention on TPU, cuDNN's on NVIDIA's GPUs from Ampere on, XLA's own products
elsewhere.

The platform is that of the devices of the mesh in context (so that a program compiled ahead of time for a TPU gets the
TPU's kernel), without a mesh that of the default backend; `VLMAX_ATTENTION=xla` or another name overrides it. What a
kernel cannot express goes to XLA's products, in silence, for the numbers are the same:

| | splash | cuDNN |
|---|---|---|
| mask | causal, window, segments | all |
| not | prefix length, a cache's offset, bias | bias |
| lengths | multiples of 128 | even |
| over devices | queries whole, heads with their keys, rows that divide | queries whole, heads with their keys |
| dtype | any | bfloat16, float16; heads up to 128 wide, by 8 |

Splash attention never has an array of [Tq, Tk] in memory, in the forward or the backward pass; cuDNN gets one of
[B, 1, Tq, Tk] where the mask is more than causal or a window, and none of [B, H, Tq, Tk].
"""

from __future__ import annotations

import functools
import math
import os
import re
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vlmax.errors import InputError, nearest
from vlmax.models.layers.axes import mesh_axes

if TYPE_CHECKING:
    from vlmax.models.layers.attention import Mask

Kernel = Literal["xla", "splash", "cudnn"]
VARIABLE = "VLMAX_ATTENTION"

WEIGHTS = "attention_weights"
"""What the remat policy `dots` keeps of attention, instead of the scores; of splash attention, its result and sums."""

_LANES = 128  # splash attention takes whole lanes of tokens
_BLOCKS = (512, 384, 256, 128)  # tokens of a block, the first that divides the length: the smaller ones cost time
_AMPERE = 8  # the first generation of NVIDIA's whose attention cuDNN computes


def kernel() -> Kernel:
    """The kernel of the platform, or the one that the environment names.

    Raises:
      InputError: the environment names another.
    """
    named = os.environ.get(VARIABLE)
    if named is not None:
        for known in get_args(Kernel):
            if named == known:
                return known
        raise InputError(f"attention: {VARIABLE} is {named!r}; {nearest(named, get_args(Kernel))}")
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    platform = jax.default_backend() if device is None else device.platform
    if platform == "tpu":
        return "splash"
    return "cudnn" if platform in ("gpu", "cuda") and _generation() >= _AMPERE else "xla"


@functools.cache
def _generation() -> int:
    """The major compute capability of this process's GPUs; 0 where they are not NVIDIA's, or there are none."""
    try:
        devices = jax.local_devices(backend="gpu")
    except RuntimeError:  # such as a program for a GPU that is compiled elsewhere
        return 0
    # Of an AMD GPU it is the name of its architecture.
    found = [re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", ""))) for device in devices]
    return min((0 if match is None else int(match[1]) for match in found), default=0)


def fused(
    q: Float[Array, "B Tq H K"], k: Float[Array, "B Tk Hkv K"], v: Float[Array, "B Tk Hkv K"], mask: Mask, bias: Any
) -> Float[Array, "B Tq H K"] | None:
    """Attention of queries that are scaled already, by the platform's kernel; None where XLA's products serve."""
    chosen = kernel()
    if chosen == "splash" and _fits_splash(q, k, mask, bias):
        return _blind_as_zeros(splash(q, k, v, mask), mask, k.shape[1])
    if chosen == "cudnn" and _fits_cudnn(q, k, bias):
        return _blind_as_zeros(_library(q, k, v, mask, "cudnn"), mask, k.shape[1])
    return None


def _fits_splash(q: Array, k: Array, mask: Mask, bias: Any) -> bool:
    return (
        bias is None
        and mask.offset is None
        and mask.prefix_length is None
        and (not mask.causal or q.shape[1] == k.shape[1])
        and q.shape[1] % _LANES == 0 == k.shape[1] % _LANES
        and _divides(q.shape[0], "batch")
        and _whole(k)
    )


def _whole(k: Array) -> bool:
    """Whether a device has all tokens of its queries, and of its heads the keys."""
    heads = mesh_axes("act_heads") == mesh_axes("act_kv_heads") and _divides(k.shape[2], "act_kv_heads")
    return heads and not mesh_axes("tokens")


def _divides(size: int, name: str) -> bool:
    """Whether the mesh axes of a logical axis divide it."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return size % math.prod(sizes[axis] for axis in mesh_axes(name)) == 0


def splash(
    q: Float[Array, "B Tq H K"],
    k: Float[Array, "B Tk Hkv K"],
    v: Float[Array, "B Tk Hkv K"],
    mask: Mask,
    interpret: bool = False,
) -> Float[Array, "B Tq H K"]:
    """JAX's splash attention, on every device over its own rows and heads; `interpret` runs it where there is no TPU.

    A query that sees no key gets something finite.
    """
    segments = () if mask.query_segments is None else (mask.query_segments, mask.key_segments)
    batch, heads = mesh_axes("batch"), mesh_axes("act_heads")
    function = functools.partial(_splash_on_device, causal=mask.causal, window=mask.window, interpret=interpret)
    if not jax.sharding.get_abstract_mesh().empty:
        # Over all axes of the mesh, also those that split nothing here: the compiler takes a kernel only so.
        rows = PartitionSpec(batch or None, None, heads or None)
        function = jax.shard_map(
            function,
            in_specs=(rows, rows, rows, *(PartitionSpec(batch or None) for _ in segments)),
            out_specs=rows,
            check_vma=False,
        )
    return function(q, k, v, *segments)


def _splash_on_device(q, k, v, *segments, causal: bool, window: int | None, interpret: bool):
    # Imported where it is used: Pallas takes a second to import, which a CPU's programs need not wait for.
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    shape = (q.shape[1], k.shape[1])
    if window is not None:
        mask = library.LocalMask(shape, (window - 1, 0), 0)
    else:
        mask = library.CausalMask(shape) if causal else library.FullMask(shape)
    queries, keys = (next(block for block in _BLOCKS if length % block == 0) for length in shape)
    sizes = library.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    run = library.make_splash_mha(
        library.MultiHeadMask([mask] * q.shape[2]),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=WEIGHTS,
        interpret=interpret,
    )
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    if segments:
        out = jax.vmap(lambda q, k, v, a, b: run(q, k, v, segment_ids=library.SegmentIds(a, b)))(q, k, v, *segments)
    else:
        out = jax.vmap(run)(q, k, v)
    return out.swapaxes(1, 2)


def _fits_cudnn(q: Array, k: Array, bias: Any) -> bool:
    return (
        bias is None
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[3] % 8 == 0
        and q.shape[3] <= 128
        and q.shape[1] % 2 == 0 == k.shape[1] % 2
        and _whole(k)
    )


def _library(q: Array, k: Array, v: Array, mask: Mask, implementation: Literal["cudnn", "xla"]) -> Array:
    """`jax.nn.dot_product_attention` of scaled queries; a mask that is more than causal or a window is made dense."""
    plain = mask.query_segments is None and mask.prefix_length is None and mask.offset is None
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=None if plain else mask.dense(q.shape[1], k.shape[1]),
        scale=1.0,
        is_causal=plain and mask.causal,
        local_window_size=(mask.window - 1, 0) if plain and mask.window is not None else None,
        implementation=implementation,
    )


def _blind_as_zeros(out: Float[Array, "B Tq H K"], mask: Mask, key_length: int) -> Float[Array, "B Tq H K"]:
    """`out` with zeros for the queries that see no key, where segments can make such."""
    if mask.query_segments is None:
        return out
    visible = mask.dense(out.shape[1], key_length)
    assert visible is not None
    return jnp.where(visible.any(axis=-1)[:, 0, :, None, None], out, 0)
