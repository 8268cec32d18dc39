"""The vision transformer (Dosovitskiy et al. 2021), plain and as CLIP, SigLIP, FLIP, BLIP and BLIP-2 use it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.errors import InputError
from vlmax.models.encoders.output import EncoderOutput
from vlmax.models.layers.attention import Attention
from vlmax.models.layers.axes import constrain, parameter
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.embeddings import Positions, sincos2d
from vlmax.models.layers.mlp import MLP, Activation
from vlmax.models.layers.norms import LayerNorm
from vlmax.models.layers.transformer import Init, Remat, Transformer, TransformerModule, inits


@dataclasses.dataclass(frozen=True)
class ViT:
    """Configuration of the encoder; the defaults are CLIP's ViT-B/16 with plain GELU.

    Raises:
      InputError: a patch larger than the image, a rate out of range, sizes that do not divide.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    patch: int = 16
    """Side of a square patch in pixels; rows and columns that fill no patch are left out, at the bottom and right."""
    image: int | tuple[int, int] = 224
    """Height and width in pixels; one number for a square."""
    pool: Literal["class", "mean", "map"] = "class"
    """class: an extra class token (CLIP); mean: over all tokens; map: an attention pooling head (SigLIP)."""
    positions: Literal["learned", "sincos2d"] = "learned"
    """With sincos2d the class token has no position (MAE)."""
    pre_norm: bool = True
    """A norm between embeddings and stack (CLIP's ln_pre)."""
    final_norm: bool = True
    """A norm after the stack. Without it `tokens` and `pooled` are the residual stream (the frozen encoders of BLIP-2,
    whose last layer is left out besides: `depth` is then one less than published)."""
    patch_bias: bool = False
    """A bias in the patch embedding."""
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-5
    qkv_bias: bool = True
    patch_keep: float = 1.0
    """Share of the patches that a training step sees, random for each example (FLIP 0.5 or 0.25)."""
    dropout: float = 0.0
    """See `Transformer`."""
    drop_path: float = 0.0
    """See `Transformer`."""
    init: Init = "clip"
    """See `Transformer`."""
    remat: Remat = "none"
    """See `Transformer`."""
    unroll: int = 1
    """See `Transformer`."""

    def __post_init__(self):
        if self.patch < 1 or min(self.grid) < 1:
            raise InputError(
                f"vit: a patch of {self.patch} does not fit into an image of {self.image_size}; change `patch` or "
                "`image`"
            )
        if not 0 < self.patch_keep <= 1:
            raise InputError(f"vit: patch_keep is {self.patch_keep}; it must be above 0 and at most 1")
        if self.positions == "sincos2d":
            sincos2d((1, 1), self.width)
        self.stack()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.image, self.image) if isinstance(self.image, int) else self.image

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: the class token."""
        return int(self.pool == "class")

    @property
    def tokens(self) -> int:
        """N, the tokens that the encoder returns when no patch is dropped."""
        return self.prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def kept_patches(self) -> int:
        """Patches that a training step sees."""
        return max(1, int(self.grid[0] * self.grid[1] * self.patch_keep))

    @property
    def output_width(self) -> int:
        """Width of the pooled vector."""
        return self.width

    def stack(self) -> Transformer:
        """The transformer stack inside."""
        return Transformer(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            norm_epsilon=self.norm_epsilon,
            activation=self.activation,
            qkv_bias=self.qkv_bias,
            dropout=self.dropout,
            drop_path=self.drop_path,
            init=self.init,
            remat=self.remat,
            unroll=self.unroll,
        )

    def build(self, dtype: DTypeLike = jnp.float32) -> ViTModule:
        """The module, computing in `dtype`."""
        return ViTModule(self, dtype)

    def flops(self) -> float:
        """Forward FLOPs of one image in training, dropped patches left out of the stack; see `Transformer.flops`."""
        patches = self.grid[0] * self.grid[1]
        tokens = self.prefix_tokens + self.kept_patches
        total = 2 * patches * 3 * self.patch**2 * self.width + self.stack().flops(tokens)
        if self.pool == "map":  # one query; keys and values of every token; the head's MLP
            total += 4 * self.width**2 * (tokens + 1) + 4 * tokens * self.width + 4 * self.width * self.mlp
        return float(total)


class ViTModule(nn.Module):
    """The encoder."""

    config: ViT
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B height width 3"], deterministic: bool = True, hidden: bool = False
    ) -> EncoderOutput:
        """Encodes normalised images; with `hidden` the output has the residual stream after every layer too.

        Without `deterministic` it needs an rng `dropout` where the configuration drops anything.

        Raises:
          InputError: images of another size than the configuration's.
        """
        config = self.config
        if images.shape[1:] != (*config.image_size, 3):
            raise InputError(f"vit: images are {images.shape[1:]}, but `image` is {config.image} with 3 channels")
        x = self.embed(images)
        if config.patch_keep < 1 and not deterministic:
            x = drop_patches(x, self.make_rng("dropout"), config.kept_patches, config.prefix_tokens)
        x = constrain(x, "batch", "tokens", "act_embed")
        if config.pre_norm:
            x = LayerNorm(config.norm_epsilon, self.dtype, name="pre_norm")(x)
        stack = TransformerModule(config.stack(), self.dtype, name="transformer")
        x, states = stack(x, deterministic=deterministic, hidden=hidden)
        final_norm = LayerNorm(config.norm_epsilon, self.dtype, name="final_norm") if config.final_norm else lambda x: x
        # The class token is normalised by itself, so that nothing else is where only `pooled` is read.
        tokens = final_norm(x)
        if config.pool == "class":
            pooled = final_norm(x[:, 0])
        elif config.pool == "mean":
            pooled = jnp.mean(tokens, axis=1)
        else:
            pooled = AttentionPool(config, self.dtype, name="pool")(tokens)
        return EncoderOutput(tokens, constrain(pooled, "batch", "act_embed"), states)

    def embed(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B N D"]:
        """Patches, class token, positions."""
        config = self.config
        lecun = nn.initializers.lecun_normal()
        dense = Dense(
            (config.width,),
            ("patch",),
            ("embed",),
            lecun,
            use_bias=config.patch_bias,
            dtype=self.dtype,
            name="patch_embedding",
        )
        x = dense(patchify(images, config.patch))
        table = None
        if config.positions == "learned":
            init = nn.initializers.normal(config.width**-0.5)
            table = Positions(config.tokens, config.width, init, self.dtype, name="positions")()
        if config.pool == "class":
            init = nn.initializers.normal(config.width**-0.5)
            token = parameter(self, "class_token", init, (config.width,), ("embed",)).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, config.width)), x], axis=1)
        if table is None:
            grid = jnp.asarray(sincos2d(config.grid, config.width), self.dtype)
            table = jnp.pad(grid, ((config.prefix_tokens, 0), (0, 0)))
        return x + table


class AttentionPool(nn.Module):
    """SigLIP's pooling head (MAP, Zhai et al. 2022): a learned query attends to all tokens, then a residual MLP."""

    config: ViT
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        """One vector an example."""
        config, init = self.config, inits(self.config.stack())
        probe = parameter(self, "probe", nn.initializers.xavier_uniform(), (1, config.width), (None, "embed"))
        query = jnp.broadcast_to(probe.astype(self.dtype), (tokens.shape[0], 1, config.width))
        head_dim = config.width // config.heads
        attention = Attention(
            config.heads, config.heads, head_dim, init.qkv, init.out, dtype=self.dtype, name="attention"
        )
        x = attention(query, tokens)
        y = LayerNorm(config.norm_epsilon, self.dtype, name="norm")(x)
        mlp = MLP(config.mlp, config.activation, init.up, init.down, init.mlp_bias, dtype=self.dtype, name="mlp")
        return (x + mlp(y))[:, 0]


def patchify(images: Float[Array, "B height width 3"], patch: int) -> Float[Array, "B N P"]:
    """Square patches row by row, each flattened as row, column, colour; what fills no patch is cut off.

    With a matrix after it this is the convolution of stride `patch`, as one large matrix product.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    x = images[:, : rows * patch, : columns * patch]
    x = x.reshape(batch, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * columns, patch * patch * channels)


def drop_patches(x: Float[Array, "B N D"], rng: Array, keep: int, prefix_tokens: int) -> Float[Array, "B M D"]:
    """The prefix and `keep` random patches of each example, in their order (FLIP, Li et al. 2023, section 3)."""
    prefix, patches = x[:, :prefix_tokens], x[:, prefix_tokens:]
    chosen = jnp.argsort(jax.random.uniform(rng, patches.shape[:2]), axis=1)[:, :keep]
    kept = jax.vmap(lambda rows, index: rows[index])(patches, jnp.sort(chosen, axis=1))
    return jnp.concatenate([prefix, kept], axis=1)


def vit_b32(**changes) -> ViT:
    """CLIP ViT-B/32 (Radford et al. 2021, table 20)."""
    return dataclasses.replace(ViT(patch=32), **changes)


def vit_b16(**changes) -> ViT:
    """CLIP ViT-B/16 (Radford et al. 2021, table 20)."""
    return dataclasses.replace(ViT(patch=16), **changes)


def vit_l14(**changes) -> ViT:
    """CLIP ViT-L/14 (Radford et al. 2021, table 20)."""
    return dataclasses.replace(ViT(width=1024, depth=24, heads=16, mlp=4096, patch=14), **changes)


def vit_h14(**changes) -> ViT:
    """OpenCLIP ViT-H/14, heads 80 wide (Cherti et al. 2023, table 24)."""
    return dataclasses.replace(ViT(width=1280, depth=32, heads=16, mlp=5120, patch=14), **changes)


def vit_g14(**changes) -> ViT:
    """OpenCLIP ViT-g/14, heads 88 wide (Cherti et al. 2023, table 24)."""
    return dataclasses.replace(ViT(width=1408, depth=40, heads=16, mlp=6144, patch=14), **changes)


def siglip_vit_b16(**changes) -> ViT:
    """SigLIP ViT-B/16: attention pooling, no class token, no norm before the stack (Zhai et al. 2023)."""
    siglip = ViT(pool="map", pre_norm=False, patch_bias=True, activation="gelu_tanh", norm_epsilon=1e-6, init="xavier")
    return dataclasses.replace(siglip, **changes)


def plain_vit_b16(**changes) -> ViT:
    """ViT-B/16 as published, without its classifier (Dosovitskiy et al. 2021, table 1)."""
    return dataclasses.replace(ViT(pre_norm=False, patch_bias=True, norm_epsilon=1e-12, init="xavier"), **changes)


def blip_vit_b16(**changes) -> ViT:
    """BLIP's ViT-B/16, trained from DeiT's (Li et al. 2022); its features are all the tokens, the class token first."""
    return dataclasses.replace(ViT(pre_norm=False, patch_bias=True, norm_epsilon=1e-6, init="normal"), **changes)


def blip_vit_l16(**changes) -> ViT:
    """BLIP's ViT-L/16 (Li et al. 2022), which trains with a drop path of 0.1."""
    return blip_vit_b16(**{"width": 1024, "depth": 24, "heads": 16, "mlp": 4096, **changes})


def eva_vit_g14(**changes) -> ViT:
    """EVA ViT-g/14 (Fang et al. 2023) as BLIP-2 reads it: 39 of the 40 layers, no final norm, 257 tokens.

    Queries and values have a bias, keys a bias of zeros. BLIP-2's `ln_vision` belongs to its connector.
    """
    eva = ViT(
        width=1408,
        depth=39,
        heads=16,
        mlp=6144,
        patch=14,
        pre_norm=False,
        final_norm=False,
        patch_bias=True,
        norm_epsilon=1e-6,
        init="normal",
    )
    return dataclasses.replace(eva, **changes)


def penultimate_vit_l14(**changes) -> ViT:
    """OpenAI's CLIP ViT-L/14 up to the layer before the last, as BLIP-2 reads it and, at 336 pixels, LLaVA."""
    return vit_l14(**{"depth": 23, "final_norm": False, "activation": "quick_gelu", **changes})
