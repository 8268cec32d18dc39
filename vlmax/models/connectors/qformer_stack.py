"""The layers of a Q-Former, and their loop.

All layers have self-attention and feed-forward parts, which lie stacked under `layers` as BERT's do; one of every few
also attends to the image, and those parts lie stacked under `cross_layers`. A turn of the loop works through a group: a
layer that attends to the image, and those after it that do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.models.layers.attention import Attention, Mask
from vlmax.models.layers.axes import constrain
from vlmax.models.layers.cache import KeysValues
from vlmax.models.layers.mlp import MLP
from vlmax.models.layers.norms import LayerNorm
from vlmax.models.layers.transformer import REMAT_POLICIES

if TYPE_CHECKING:
    from vlmax.models.connectors.qformer import QFormer

normal = nn.initializers.normal(0.02)
Cross = Callable[[Float[Array, "B Q D"]], Float[Array, "B Q D"]]


class QFormerStack(nn.Module):
    """The layers."""

    config: QFormer
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        queries: int,
        mask: Mask | None,
        *,
        context: Float[Array, "B N C"] | None = None,
        seen: KeysValues | None = None,
        keep: bool = False,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T D"], KeysValues | None]:
        """The tokens after the last layer and, with `keep`, their keys and values in every layer.

        Args:
          x: queries, then text.
          queries: how many of them are queries.
          mask: of the self-attention; its keys are those of `seen`, then those of `x`.
          context: what queries attend to.
          seen: keys and values in every layer of tokens that were read before.
          keep: see above.
          deterministic: nothing is dropped.
        """
        if self.is_initializing():
            self.make(x, context)
            return x, None
        config, every = self.config, self.config.cross_every
        groups = config.depth // every
        drops = bool(config.dropout) and not deterministic
        layer, cross = (kind(config, self.dtype, not drops, parent=None) for kind in (QFormerLayer, QFormerCross))

        def part(module: nn.Module, params: Any, rng: Array | None, *inputs: Any) -> Any:
            return module.apply({"params": params}, *inputs, rngs=None if rng is None else {"dropout": rng})

        def group(x, own):
            layers, crossing, before, rngs = own
            kept = []
            for i in range(every):
                own_rng, cross_rng = (None, None) if rngs is None else jax.random.split(rngs[i])
                reads = i == 0 and queries > 0
                attend = (lambda q, rng=cross_rng: part(cross, crossing, rng, q, context)) if reads else None
                params, earlier = jax.tree.map(lambda leaf, i=i: leaf[i], (layers, before))
                x, new = part(layer, params, own_rng, x, queries, mask, earlier, attend)
                kept.append(new)
            return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept) if keep else None

        if config.remat != "none":
            group = jax.checkpoint(group, policy=REMAT_POLICIES[config.remat], prevent_cse=config.unroll > every)
        params = self.variables["params"]
        stacks = params["layers"], seen
        layers, before = jax.tree.map(lambda leaf: leaf.reshape(groups, every, *leaf.shape[1:]), stacks)
        rngs = jax.random.split(self.make_rng("dropout"), (groups, every)) if drops else None
        x, kept = jax.lax.scan(
            group, x, (layers, params["cross_layers"], before, rngs), unroll=max(config.unroll // every, 1)
        )
        return x, jax.tree.map(lambda leaf: leaf.reshape(config.depth, *leaf.shape[2:]), kept)

    def make(self, x: Float[Array, "B T D"], context: Float[Array, "B N C"] | None) -> None:
        """Makes the parameters, stacked."""

        def stacked(kind: type[nn.Module], depth: int, name: str) -> nn.Module:
            many = nn.vmap(
                kind,
                in_axes=None,
                out_axes=0,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                axis_size=depth,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return many(self.config, self.dtype, True, name=name)

        assert context is not None  # `init` is given an image
        config = self.config
        token = x[:1, :1]
        stacked(QFormerLayer, config.depth, "layers")(jnp.concatenate([token, token], axis=1), 1)
        stacked(QFormerCross, config.depth // config.cross_every, "cross_layers")(token, context[:1, :1])


class QFormerLayer(nn.Module):
    """Self-attention of queries and text, and their feed-forward parts, each added to the stream and normalised."""

    config: QFormer
    dtype: DTypeLike
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        queries: int,
        mask: Mask | None = None,
        seen: KeysValues | None = None,
        cross: Cross | None = None,
    ) -> tuple[Float[Array, "B T D"], KeysValues]:
        """The tokens after the layer, and their keys and values; `cross` is the queries' attention to the image."""
        attend = attention(self.config, self.dtype, "attention")
        new = visible = attend.keys_values(x)
        if seen is not None:
            visible = KeysValues(*(jnp.concatenate(both, axis=1) for both in zip(seen, new, strict=True)))
        x = added(self, x, attend(x, visible, mask), "attention_norm")
        parts = []
        if queries:
            q = x[:, :queries] if cross is None else cross(x[:, :queries])
            parts.append(self.fed(q, "query_mlp"))
        if self.config.text and x.shape[1] > queries:
            parts.append(self.fed(x[:, queries:], "mlp"))
        return (parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)), new

    def fed(self, x: Float[Array, "B T D"], name: str) -> Float[Array, "B T D"]:
        """Through a feed-forward part."""
        mlp = MLP(self.config.mlp, self.config.activation, normal, normal, dtype=self.dtype, name=name)
        return added(self, x, mlp(x), f"{name}_norm")


class QFormerCross(nn.Module):
    """Attention of the queries to the image."""

    config: QFormer
    dtype: DTypeLike
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B Q D"], context: Float[Array, "B N C"]) -> Float[Array, "B Q D"]:
        """The queries after it."""
        return added(self, x, attention(self.config, self.dtype, "cross_attention")(x, context), "cross_attention_norm")


def attention(config: QFormer, dtype: DTypeLike, name: str) -> Attention:
    """An attention of the configuration's heads, inside a module's call."""
    return Attention(config.heads, config.heads, config.width // config.heads, normal, normal, dtype=dtype, name=name)


def added(
    layer: QFormerLayer | QFormerCross, x: Float[Array, "B T D"], y: Float[Array, "B T D"], name: str
) -> Float[Array, "B T D"]:
    """`norm(x + y)`, with dropout on `y`."""
    if layer.config.dropout:
        y = nn.Dropout(layer.config.dropout)(y, deterministic=layer.deterministic)
    x = x + constrain(y, "batch", "tokens", "act_embed")
    x = LayerNorm(layer.config.norm_epsilon, layer.dtype, name=name)(x)
    return constrain(x, "batch", "tokens", "act_embed")
