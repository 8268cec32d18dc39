"""The one attention function and its structured mask."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vlmax.models.layers import kernels
from vlmax.models.layers.axes import constrain
from vlmax.models.layers.cache import KeysValues
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.embeddings import Angles, apply_rotary
from vlmax.models.layers.kernels import WEIGHTS

# Finite, so that a row without any visible key has no NaN; such rows come out as zeros.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["prefix_length", "query_segments", "key_segments", "offset"],
    meta_fields=["causal", "window"],
)
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which keys a query sees: everything, narrowed by each of the fields. A pytree; `causal` and `window` are static.

    Attributes:
      causal: query i sees keys up to i; query and key lengths must be equal, unless there is an offset.
      window: with `causal`, query i sees only the keys i - window + 1 .. i (Mistral).
      prefix_length: with `causal`, `[B]`: the first keys of a row that all its queries see (prefix language model).
      query_segments, key_segments: a query sees the keys of its own segment id: packed documents, padding.
      offset: with `causal`, the first query's place among the keys, which are those of a cache: query i then counts as
        offset + i.
    """

    causal: bool = False
    window: int | None = None
    prefix_length: Int[Array, " B"] | None = None
    query_segments: Int[Array, "B Tq"] | None = None
    key_segments: Int[Array, "B Tk"] | None = None
    offset: Int[Array, ""] | None = None

    def __post_init__(self):
        if (self.query_segments is None) != (self.key_segments is None):
            raise ValueError("mask: query_segments and key_segments go together; only one was given")
        if not self.causal and not (self.window is None and self.prefix_length is None and self.offset is None):
            raise ValueError("mask: window, prefix_length and offset belong to a causal mask; set causal=True")
        if self.window is not None and self.prefix_length is not None:
            raise ValueError("mask: window and prefix_length do not go together")
        if self.window is not None and self.window < 1:
            raise ValueError(f"mask: window is {self.window}; a query sees at least itself, so 1 or more")

    @classmethod
    def padding(cls, key_valid: Bool[Array, "B Tk"], query_length: int) -> Mask:
        """Every query sees the valid keys and no others."""
        queries = jnp.ones((key_valid.shape[0], query_length), jnp.int32)
        return cls(query_segments=queries, key_segments=key_valid.astype(jnp.int32))

    def dense(self, query_length: int, key_length: int) -> Bool[Array, "B 1 Tq Tk"] | None:
        """True where a query sees a key, with a leading dimension of 1 where all rows agree; None: all see all."""
        if self.causal and self.offset is None and query_length != key_length:
            raise ValueError(f"mask: causal attention of {query_length} queries over {key_length} keys is not defined")
        visible = None
        if self.causal:
            query, key = jnp.arange(query_length)[:, None], jnp.arange(key_length)[None, :]
            query = query if self.offset is None else query + self.offset
            visible = key <= query
            if self.window is not None:
                visible &= key > query - self.window
            visible = visible[None, None]
            if self.prefix_length is not None:
                visible |= key < self.prefix_length[:, None, None, None]
        if self.query_segments is not None and self.key_segments is not None:
            same = self.query_segments[:, None, :, None] == self.key_segments[:, None, None, :]
            visible = same if visible is None else visible & same
        return visible


def attention(
    q: Float[Array, "B Tq H K"],
    k: Float[Array, "B Tk Hkv K"],
    v: Float[Array, "B Tk Hkv K"],
    mask: Mask | None = None,
    *,
    bias: Float[Array, "#B #H #Tq #Tk"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B Tq H K"]:
    """softmax(q k^T scale + bias) v with the softmax in float32; a query that sees no key gets zeros.

    Each key head serves H / Hkv query heads in order (grouped queries). `scale` is K^-0.5 unless given.

    Raises:
      ValueError: H is no multiple of Hkv.
    """
    batch, query_length, heads, width = q.shape
    key_length, groups = k.shape[1], k.shape[2]
    if heads % groups:
        raise ValueError(f"attention: {heads} query heads do not divide over {groups} key heads")
    mask = Mask() if mask is None else mask
    q = constrain(q, "batch", "tokens", "act_heads", "act_head_dim")
    # Every query needs all keys: with tokens spread over devices the keys are gathered, the queries stay.
    k = constrain(k, "batch", None, "act_kv_heads", "act_head_dim")
    v = constrain(v, "batch", None, "act_kv_heads", "act_head_dim")

    q = q * (width**-0.5 if scale is None else scale)
    out = kernels.fused(q, k, v, mask, bias)
    if out is not None:
        return constrain(out, "batch", "tokens", "act_heads", "act_head_dim")
    q = q.reshape(batch, query_length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    if bias is not None:
        shape = (bias.shape[0], groups, heads // groups) if bias.shape[1] > 1 else (bias.shape[0], 1, 1)
        bias = bias.reshape(*shape, *bias.shape[2:])
    visible = mask.dense(query_length, key_length)
    visible = None if visible is None else visible[:, :, None]
    out = weighted_values(q, k, v, bias, visible, mask.query_segments is not None)
    out = out.transpose(0, 3, 1, 2, 4).reshape(batch, query_length, heads, width)
    return constrain(out, "batch", "tokens", "act_heads", "act_head_dim")


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def weighted_values(
    q: Float[Array, "B Hkv R Tq K"],
    k: Float[Array, "B Hkv Tk K"],
    v: Float[Array, "B Hkv Tk K"],
    bias: Float[Array, "#B #Hkv #R #Tq #Tk"] | None,
    visible: Bool[Array, "#B 1 1 Tq Tk"] | None,
    blind_rows: bool,
) -> Float[Array, "B Hkv R Tq K"]:
    """softmax(q k^T + bias) v over the visible keys; `blind_rows`: some query may see none, and gets zeros.

    The backward pass keeps q, k, v, the weights and the output, in their dtype (no forward-mode derivative).
    """
    return _weighted_values_forward(q, k, v, bias, visible, blind_rows)[0]


def _weighted_values_forward(q, k, v, bias, visible, blind_rows):
    scores = jnp.einsum("bgrqk,bgsk->bgrqs", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    if visible is not None:
        scores = jnp.where(visible, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    if visible is not None and blind_rows:
        weights = jnp.where(visible, weights, 0.0)
    weights = checkpoint_name(weights.astype(v.dtype), WEIGHTS)
    out = jnp.einsum("bgrqs,bgsk->bgrqk", weights, v)
    return out, (q, k, v, bias, weights, out)


def _weighted_values_backward(blind_rows, saved, g):
    # By hand: a twentieth of a small CLIP's step on a CPU, and in bfloat16 half the memory of what autodiff keeps.
    q, k, v, bias, weights, out = saved
    dweights = jnp.einsum("bgrqk,bgsk->bgrqs", g, v, preferred_element_type=jnp.float32)
    # The sum over keys of weights * dweights is that over the head's width of g * out, which are at hand.
    mean = jnp.sum(g * out, axis=-1, keepdims=True, dtype=jnp.float32)
    dscores = weights * (dweights - mean)
    dbias = None
    if bias is not None:
        spread = tuple(i for i, size in enumerate(bias.shape) if size == 1)
        dbias = jnp.sum(dscores, axis=spread, keepdims=True).astype(bias.dtype)
    dscores = dscores.astype(q.dtype)
    dq = jnp.einsum("bgrqs,bgsk->bgrqk", dscores, k)
    dk = jnp.einsum("bgrqs,bgrqk->bgsk", dscores, q)
    dv = jnp.einsum("bgrqs,bgrqk->bgsk", weights, g)
    return dq, dk, dv, dbias, None


weighted_values.defvjp(_weighted_values_forward, _weighted_values_backward)


class Attention(nn.Module):
    """Multi-head attention with its four projections; `kv_heads` fewer than `heads` makes it grouped."""

    heads: int
    kv_heads: int
    head_dim: int
    qkv_init: Initializer
    out_init: Initializer
    qkv_bias: bool = True
    out_bias: bool = True
    dtype: DTypeLike = jnp.float32

    def setup(self):
        """Makes the projections that a cache needs beside the call."""

        def dense(heads, axis):
            features, axes = (heads, self.head_dim), (axis, "head_dim")
            return Dense(features, ("embed",), axes, self.qkv_init, use_bias=self.qkv_bias, dtype=self.dtype)

        self.query = dense(self.heads, "heads")
        self.key = dense(self.kv_heads, "kv_heads")
        self.value = dense(self.kv_heads, "kv_heads")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Tq D"],
        context: Float[Array, "B Tk C"] | KeysValues | None = None,
        mask: Mask | None = None,
        rotary: Angles | None = None,
    ) -> Float[Array, "B Tq D"]:
        """Attends from `x` to `context`, or to itself without one; `rotary` is (cos, sin) for queries and keys.

        Keys and values that were made before may stand for the context; `rotary` is then for the queries alone.
        """
        q = self.query(x)
        if rotary is not None:
            q = apply_rotary(q, *rotary)
        if not isinstance(context, KeysValues):
            context = self.keys_values(x if context is None else context, rotary)
        k, v = context
        out = attention(q, k, v, mask)
        project = Dense(
            (x.shape[-1],),
            ("heads", "head_dim"),
            ("embed",),
            self.out_init,
            use_bias=self.out_bias,
            dtype=self.dtype,
            name="out",
        )
        return project(out)

    def keys_values(self, context: Float[Array, "B Tk C"], rotary: Angles | None = None) -> KeysValues:
        """The keys and values of the context, for a cache."""
        k = self.key(context)
        return KeysValues(k if rotary is None else apply_rotary(k, *rotary), self.value(context))
