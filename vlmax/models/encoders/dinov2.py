"""DINOv2 (Oquab et al. 2023), without and with registers (Darcet et al. 2024)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.errors import InputError
from vlmax.models.encoders.output import EncoderOutput
from vlmax.models.encoders.vit import patchify
from vlmax.models.layers.axes import constrain, parameter
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.embeddings import Positions, resize_positions
from vlmax.models.layers.norms import LayerNorm
from vlmax.models.layers.transformer import Remat, Transformer, TransformerModule


@dataclasses.dataclass(frozen=True)
class DINOv2:
    """Configuration of the encoder; the defaults are the published ViT-B/14's on images of 224 pixels.

    Raises:
      InputError: a patch larger than an image, fewer than no registers, sizes that do not divide.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    """Width of the feed-forward part; gated, of each of its two halves."""
    patch: int = 14
    """Side of a square patch in pixels; rows and columns that fill no patch are left out, at the bottom and right."""
    image: int | tuple[int, int] = 224
    """Height and width in pixels; one number for a square."""
    table_image: int = 518
    """Side in pixels of the square images that the learned positions were trained on; they are stored for those, and
    interpolated at every call for `image`."""
    antialias: bool = False
    """How positions are interpolated: with antialiasing in the models with registers, without in the others."""
    position_offset: float = 0.1
    """See `resize_positions`. 0.1 as published; transformers computes the same weights with 0."""
    registers: int = 0
    """Learned tokens between the class token and the patches."""
    swiglu: bool = False
    """A gated feed-forward part with SiLU (ViT-g) for the plain one with GELU."""
    layer_scale: float = 1e-5
    """See `Transformer`."""
    norm_epsilon: float = 1e-6
    qkv_bias: bool = True
    drop_path: float = 0.0
    """See `Transformer`."""
    remat: Remat = "none"
    """See `Transformer`."""
    unroll: int = 1
    """See `Transformer`."""

    def __post_init__(self):
        if self.patch < 1 or min(*self.grid, *self.table_grid) < 1:
            raise InputError(
                f"dinov2: a patch of {self.patch} does not fit into an image of {self.image_size} or of "
                f"{self.table_image}; change `patch`, `image` or `table_image`"
            )
        if self.registers < 0:
            raise InputError(f"dinov2: registers is {self.registers}; it must be 0 or more")
        if self.antialias and self.position_offset:
            raise InputError(
                f"dinov2: position_offset is {self.position_offset}, but antialiased positions have none; set "
                "`position_offset` to 0 or `antialias` to False"
            )
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
    def table_grid(self) -> tuple[int, int]:
        """Rows and columns of the stored positions."""
        return self.table_image // self.patch, self.table_image // self.patch

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + self.registers

    @property
    def tokens(self) -> int:
        """N, the tokens that the encoder returns."""
        return self.prefix_tokens + self.grid[0] * self.grid[1]

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
            activation="silu" if self.swiglu else "gelu",
            gated=self.swiglu,
            qkv_bias=self.qkv_bias,
            drop_path=self.drop_path,
            layer_scale=self.layer_scale,
            remat=self.remat,
            unroll=self.unroll,
        )

    def build(self, dtype: DTypeLike = jnp.float32) -> DINOv2Module:
        """The module, computing in `dtype`."""
        return DINOv2Module(self, dtype)

    def flops(self) -> float:
        """Forward FLOPs of one image; see `Transformer.flops`."""
        patches = self.grid[0] * self.grid[1]
        return float(2 * patches * 3 * self.patch**2 * self.width + self.stack().flops(self.tokens))


class DINOv2Module(nn.Module):
    """The encoder."""

    config: DINOv2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B height width 3"], deterministic: bool = True, hidden: bool = False
    ) -> EncoderOutput:
        """Encodes normalised images; with `hidden` the output has the residual stream after every layer too.

        `pooled` is the class token. Without `deterministic` it needs an rng `dropout` where a drop path is set.

        Raises:
          InputError: images of another size than the configuration's.
        """
        config = self.config
        if images.shape[1:] != (*config.image_size, 3):
            raise InputError(f"dinov2: images are {images.shape[1:]}, but `image` is {config.image} with 3 channels")
        x = constrain(self.embed(images), "batch", "tokens", "act_embed")
        stack = TransformerModule(config.stack(), self.dtype, name="transformer")
        x, states = stack(x, deterministic=deterministic, hidden=hidden)
        final_norm = LayerNorm(config.norm_epsilon, self.dtype, name="final_norm")
        return EncoderOutput(final_norm(x), constrain(final_norm(x[:, 0]), "batch", "act_embed"), states)

    def embed(self, images: Float[Array, "B height width 3"]) -> Float[Array, "B N D"]:
        """Patches and class token with their positions, and registers, which have none."""
        config, normal = self.config, nn.initializers.normal(0.02)
        width, batch = config.width, images.shape[0]
        dense = Dense((width,), ("patch",), ("embed",), normal, dtype=self.dtype, name="patch_embedding")
        patches = dense(patchify(images, config.patch))
        token = parameter(self, "class_token", normal, (width,), ("embed",)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, width)), patches], axis=1)
        rows = 1 + config.table_grid[0] * config.table_grid[1]
        table = Positions(rows, width, normal, jnp.float32, name="positions")()
        table = resize_positions(
            table, config.table_grid, config.grid, 1, antialias=config.antialias, offset=config.position_offset
        )
        x = x + table.astype(self.dtype)
        if config.registers:
            registers = parameter(self, "registers", normal, (config.registers, width), (None, "embed"))
            registers = jnp.broadcast_to(registers.astype(self.dtype), (batch, config.registers, width))
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        return x


def with_registers(config: DINOv2, registers: int = 4) -> DINOv2:
    """The model with registers of that size (Darcet et al. 2024)."""
    return dataclasses.replace(config, registers=registers, antialias=True, position_offset=0.0)


def dinov2_s14(**changes) -> DINOv2:
    """DINOv2 ViT-S/14 (Oquab et al. 2023, appendix B)."""
    return dataclasses.replace(DINOv2(width=384, heads=6, mlp=1536), **changes)


def dinov2_b14(**changes) -> DINOv2:
    """DINOv2 ViT-B/14 (Oquab et al. 2023, appendix B)."""
    return dataclasses.replace(DINOv2(), **changes)


def dinov2_l14(**changes) -> DINOv2:
    """DINOv2 ViT-L/14 (Oquab et al. 2023, appendix B)."""
    return dataclasses.replace(DINOv2(width=1024, depth=24, heads=16, mlp=4096), **changes)


def dinov2_g14(**changes) -> DINOv2:
    """DINOv2 ViT-g/14 with SwiGLU (Oquab et al. 2023, appendix B)."""
    return dataclasses.replace(DINOv2(width=1536, depth=40, heads=24, mlp=4096, swiglu=True), **changes)
