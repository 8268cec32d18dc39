"""The transformer stack that every encoder and decoder is made of: one layer, scanned.

It covers ViT, CLIP's and SigLIP's text, BERT (post-norm, cross-attention), GPT-2, OPT and LLaMA (RMS norm, gated MLP,
rotary positions, grouped queries). Embeddings, the final norm and heads belong to the model around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vlmax.errors import InputError
from vlmax.models.layers.attention import Attention, Mask
from vlmax.models.layers.axes import constrain, parameter
from vlmax.models.layers.cache import Cache, CacheInLoop, KeptContext, context_by_layer, of_all_layers, turned
from vlmax.models.layers.embeddings import Angles, Rotary
from vlmax.models.layers.kernels import WEIGHTS
from vlmax.models.layers.mlp import MLP, Activation
from vlmax.models.layers.norms import NormKind, norm

Remat = Literal["none", "full", "dots", "dots_no_batch"]
Init = Literal["clip", "xavier", "normal", "gpt2"]

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(WEIGHTS)
    ),
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Transformer:
    """Configuration of the stack.

    Raises:
      InputError: heads that do not divide the width, key heads that do not divide the heads, a rate outside [0, 1).
    """

    width: int
    """D, of the residual stream."""
    depth: int
    """Number of layers."""
    heads: int
    """H, the number of heads."""
    mlp: int
    """Width of the feed-forward part."""
    kv_heads: int | None = None
    """Key and value heads; None: as many as heads."""
    head_dim: int | None = None
    """K, the width of a head; None: width / heads."""
    norm: NormKind = "layer"
    norm_epsilon: float = 1e-5
    norm_position: Literal["pre", "post"] = "pre"
    """Before each part, or after its residual sum (BERT)."""
    activation: Activation = "gelu"
    gated: bool = False
    """A gated MLP of three matrices (SwiGLU with activation silu)."""
    qkv_bias: bool = True
    """A bias on keys changes no output, so families without it hold zeros there."""
    out_bias: bool = True
    mlp_bias: bool = True
    rotary: Rotary | None = None
    """Rotary positions in self-attention."""
    cross_width: int | None = None
    """Width of the context that every layer attends to between self-attention and MLP; None: no cross-attention."""
    dropout: float = 0.0
    """Rate on the output of every part, before its residual sum; attention weights are not dropped."""
    drop_path: float = 0.0
    """Rate at which an example skips a part; grows linearly from 0 at the first layer to this at the last."""
    layer_scale: float | None = None
    """Initial value of a learned factor on every channel of a part's output (CaiT, DINOv2); None: there is none."""
    init: Init = "normal"
    """clip: OpenCLIP's, by width and depth; xavier: xavier uniform (big_vision, SigLIP); normal: deviation 0.02 (BERT,
    OPT, LLaMA); gpt2: that, but 0.02 / sqrt(2 depth) for what is added to the residual stream."""
    remat: Remat = "none"
    """What the backward pass recomputes. none: nothing; full: all but a layer's input; dots: all but matrix products
    and attention weights; dots_no_batch: all but matrix products with parameters."""
    unroll: int = 1
    """Layers that are compiled in line in each turn of the loop over them. With `depth` there is no loop: a CPU then
    trains a small CLIP a tenth faster, as a loop writes what the backward pass needs into stacks; compiling takes
    longer, and recomputation saves less memory. 1 elsewhere."""

    def __post_init__(self):
        if self.heads < 1 or (self.head_dim is None and self.width % self.heads):
            raise InputError(
                f"transformer: width {self.width} does not divide over {self.heads} heads; change `heads` or `width`"
            )
        if self.head_width < 1:
            raise InputError(f"transformer: head_dim is {self.head_dim}; it must be 1 or more")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise InputError(
                f"transformer: kv_heads {self.kv_heads} does not divide the {self.heads} heads; change `kv_heads`"
            )
        if self.rotary is not None and self.head_width % 2:
            raise InputError(
                f"transformer: rotary positions need an even head width, not {self.head_width}; change `heads`"
            )
        if min(self.width, self.depth, self.mlp) < 1:
            raise InputError(
                f"transformer: width {self.width}, depth {self.depth} and mlp {self.mlp} must be 1 or more"
            )
        if not 1 <= self.unroll <= self.depth:
            raise InputError(f"transformer: unroll is {self.unroll}; it must be between 1 and the depth, {self.depth}")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"transformer: {name} is {getattr(self, name)}; it must be at least 0 and below 1")

    @property
    def head_width(self) -> int:
        """K, the width of a head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    def flops(self, tokens: int, context: int = 0) -> float:
        """Forward FLOPs of one example: matrix products, a multiply-add as 2, attention over the full square."""
        inner, kv_width = self.heads * self.head_width, (self.kv_heads or self.heads) * self.head_width
        dense = 2 * self.width * (inner + kv_width) + (3 if self.gated else 2) * self.width * self.mlp
        layer = 2 * tokens * dense + 4 * tokens * tokens * inner
        if self.cross_width is not None:
            layer += 4 * tokens * self.width * inner + 4 * context * self.cross_width * kv_width
            layer += 4 * tokens * context * inner
        return float(self.depth * layer)


class Inits(NamedTuple):
    """Initialisers of a layer's matrices `[inputs, outputs]` and of its MLP's biases."""

    qkv: Initializer
    out: Initializer
    up: Initializer
    down: Initializer
    mlp_bias: Initializer


def inits(config: Transformer) -> Inits:
    """The initialisers that `config.init` names."""
    normal = nn.initializers.normal
    zeros = nn.initializers.zeros
    if config.init == "clip":  # OpenCLIP src/open_clip/transformer.py: TextTransformer.init_parameters
        attention, up = normal(config.width**-0.5), normal((2 * config.width) ** -0.5)
        projection = normal((2 * config.depth * config.width) ** -0.5)
        return Inits(attention, projection, up, projection, zeros)
    if config.init == "xavier":
        xavier = nn.initializers.xavier_uniform()
        return Inits(xavier, xavier, xavier, xavier, normal(1e-6))
    plain = normal(0.02)
    added = normal(0.02 * (2 * config.depth) ** -0.5) if config.init == "gpt2" else plain
    return Inits(plain, added, plain, added, zeros)


class LayerInputs(NamedTuple):
    """What every layer gets alike."""

    mask: Mask
    rotary: Angles | None
    context: Float[Array, "B N C"] | None
    context_mask: Mask


Carry = tuple[Float[Array, "B T D"], CacheInLoop | None]
"""What layers hand on: the residual stream, and the cache where there is one."""


class OwnInputs(NamedTuple):
    """What a layer gets for itself: its rate of drop path, and a context read before, as the cache keeps it."""

    drop_path: Float[Array, ""]
    cross: Any = None


class OwnOutputs(NamedTuple):
    """What a layer leaves: its output where hidden states are kept; for a cache, the context that it has read."""

    hidden: Float[Array, "B T D"] | None
    cross: KeptContext | None


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a context, MLP; each with its norm and residual sum."""

    config: Transformer
    dtype: DTypeLike
    deterministic: bool
    keep_hidden: bool = False

    @nn.compact
    def __call__(self, carry: Carry, own: OwnInputs, inputs: LayerInputs) -> tuple[Carry, OwnOutputs]:
        """From the residual stream and cache before the layer to those after it."""
        config, init, drop_path = self.config, inits(self.config), own.drop_path
        x, cache = carry

        def attention(name):
            kv_heads = config.kv_heads or config.heads
            return Attention(
                config.heads,
                kv_heads,
                config.head_width,
                init.qkv,
                init.out,
                config.qkv_bias,
                config.out_bias,
                self.dtype,
                name=name,
            )

        def attend(y):
            nonlocal cache
            itself, seen = attention("attention"), None
            if cache is not None:
                new = itself.keys_values(y, inputs.rotary)
                cache, slots = cache.put(new)
                seen = new if inputs.mask.offset is None else slots
            return itself(y, seen, inputs.mask, inputs.rotary)

        x, read = self.residual(x, "attention_norm", drop_path, attend), None
        if config.cross_width is not None:
            cross = attention("cross_attention")
            context = turned(own.cross) if own.cross is not None else cross.keys_values(inputs.context)
            x = self.residual(x, "cross_attention_norm", drop_path, lambda y: cross(y, context, inputs.context_mask))
            read = turned(context) if own.cross is None and cache is not None else None
        mlp = MLP(
            config.mlp,
            config.activation,
            init.up,
            init.down,
            init.mlp_bias,
            config.gated,
            config.mlp_bias,
            self.dtype,
            name="mlp",
        )
        x = self.residual(x, "mlp_norm", drop_path, mlp)
        return (x, cache), OwnOutputs(x if self.keep_hidden else None, read)

    def residual(self, x, name, drop_path, part):
        """`x + part(norm(x))`, or `norm(x + part(x))`, with dropout on the part."""
        config = self.config
        normalise = norm(config.norm, config.norm_epsilon, self.dtype, name)
        pre = config.norm_position == "pre"
        y = part(normalise(x) if pre else x)
        if config.dropout:
            y = nn.Dropout(config.dropout)(y, deterministic=self.deterministic)
        if config.layer_scale is not None:
            init = nn.initializers.constant(config.layer_scale)
            y = y * parameter(self, name.removesuffix("norm") + "scale", init, y.shape[-1:], ("norm",)).astype(y.dtype)
        if config.drop_path and not self.deterministic:
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - drop_path, (y.shape[0], 1, 1))
            y = jnp.where(kept, y / (1 - drop_path).astype(y.dtype), 0)
        x = x + constrain(y, "batch", "tokens", "act_embed")
        x = x if pre else normalise(x)
        return constrain(x, "batch", "tokens", "act_embed")


class TransformerModule(nn.Module):
    """The stack; parameters of all layers lie stacked on a leading `layers` dimension under `layers`.

    It also runs with parameters that `layer_by_layer` made, without a loop.
    """

    config: Transformer
    dtype: DTypeLike = jnp.float32

    @overload
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Mask | None = None,
        *,
        positions: Int[Array, "#B T"] | None = None,
        context: Float[Array, "B N C"] | None = None,
        context_mask: Mask | None = None,
        deterministic: bool = True,
        hidden: bool = False,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "layers B T D"] | None]: ...

    @overload
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Mask | None = None,
        *,
        positions: Int[Array, "#B T"] | None = None,
        context: Float[Array, "B N C"] | None = None,
        context_mask: Mask | None = None,
        deterministic: bool = True,
        hidden: bool = False,
        cache: Cache,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "layers B T D"] | None, Cache]: ...

    @nn.compact
    def __call__(
        self,
        x,
        mask=None,
        *,
        positions=None,
        context=None,
        context_mask=None,
        deterministic=True,
        hidden=False,
        cache=None,
    ):
        """The residual stream after the last layer and, with `hidden`, after every layer; with a cache, also that.

        `positions` are those of rotary embedding; unless given 0, 1, 2, ..., or the slots of the cache.

        A cache comes with the new tokens admitted, and with a mask whose keys are its slots, which has an offset; at
        the first call the mask may be one without, and the tokens then see each other alone. The context is read at
        the first call and may be left out of those that follow.

        Raises:
          ValueError: a context without cross-attention, or the other way round; positions without rotary embedding; a
            mask without an offset for a cache that holds something.
        """
        config = self.config
        known = cache is not None and cache.cross is not None
        if (context is None and not known) != (config.cross_width is None):
            raise ValueError(
                f"transformer: cross_width is {config.cross_width}, and a context is "
                + ("missing" if context is None else "given, which nothing reads")
            )
        if positions is not None and config.rotary is None:
            raise ValueError("transformer: positions were given, but the stack has no rotary embedding that reads them")
        rotary = None
        if config.rotary is not None:
            slots = jnp.arange(x.shape[1])[None]
            if positions is None:
                positions = slots if cache is None else slots + cache.index
            rotary = config.rotary.angles(positions, config.head_width)
        inputs = LayerInputs(mask or Mask(), rotary, context, context_mask or Mask())
        if cache is not None and not cache.fresh and inputs.mask.offset is None:
            raise ValueError("transformer: the cache holds tokens, and the mask has no offset for those that follow")

        rates = jnp.asarray(np.linspace(0, config.drop_path, config.depth), jnp.float32)
        x = constrain(x.astype(self.dtype), "batch", "tokens", "act_embed")
        make = in_turn if self.has_variable("params", "layers_0") else scanned
        run = make(config, self.dtype, deterministic, hidden)
        if cache is None:
            (x, _), states = run((x, None), OwnInputs(rates), inputs)
            return x, states.hidden
        length = x.shape[1]
        x = jnp.where(cache.index + length <= cache.slots, x, jnp.nan)  # else the newest slots would be overwritten
        loop = CacheInLoop(cache.keys, cache.values, cache.index, jnp.zeros((), jnp.int32))
        cross = cache.cross if context is None else None
        (x, loop), states = run((x, loop), OwnInputs(rates, cross), inputs)
        return x, states.hidden, cache.after(loop, length, states.cross if cross is None else cross)


Run = Callable[[Carry, OwnInputs, LayerInputs], tuple[Any, OwnOutputs]]


def scanned(config: Transformer, *options: Any) -> Run:
    """All layers as a loop over one; their own inputs and outputs are stacked."""
    layer = Layer
    if config.remat != "none":
        # Within a turn of the loop the compiler would undo the recomputation.
        layer = nn.remat(Layer, policy=REMAT_POLICIES[config.remat], prevent_cse=config.unroll > 1)
    in_axes: Any = (0, nn.broadcast)
    stack = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=config.depth,
        unroll=config.unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stack(config, *options, name="layers")


def in_turn(config: Transformer, *options: Any) -> Run:
    """One layer after the other, with parameters of `layer_by_layer`; nothing is recomputed."""

    def run(carry, own, inputs):
        x, cache = carry
        caches: list[Any] = [None] * config.depth if cache is None else cache.by_layer()
        contexts, outputs = context_by_layer(own.cross, config.depth), []
        for i in range(config.depth):
            layer = Layer(config, *options, name=f"layers_{i}")
            (x, caches[i]), output = layer((x, caches[i]), OwnInputs(own.drop_path[i], contexts[i]), inputs)
            outputs.append(output)
        hidden, read = zip(*outputs, strict=True)
        out = OwnOutputs(None if hidden[0] is None else jnp.stack(hidden), None if read[0] is None else read)
        return (x, None if cache is None else of_all_layers(caches)), out

    return run
