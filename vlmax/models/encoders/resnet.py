"""Residual networks: ResNet-50/101 (arXiv 1512.03385, the "v1.5" form) and CLIP's (arXiv 2103.00020, section 2.4).

Both are one stem, four stages of bottleneck blocks and a pooling. Plain: a 7x7 stem, strides in the 3x3 convolutions,
mean pooling. CLIP's: a stem of three 3x3 convolutions, average pools in front of what strides ("antialiased"), and an
attention pool whose query is the mean token. Images are [B, height, width, 3]; feature maps stay in that layout.

Batch statistics live in the collection `batch_stats`. In training the mean and variance are those of the *global*
batch: the arrays are global under jit, and the compiler adds the reduction over the mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vlmax.errors import InputError
from vlmax.models.encoders.output import EncoderOutput
from vlmax.models.layers.axes import constrain, parameter
from vlmax.models.layers.dense import Dense

_EXPANSION = 4  # a block's output is this many times as wide as its 3x3 convolution
_STAGES = 4
_REDUCTION = 32  # pixels of the image per cell of the last feature map, along one side

_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # torchvision's
_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default, which CLIP keeps


@dataclass(frozen=True)
class ResNet:
    """A plain ResNet; tokens are the cells of the last feature map, `pooled` is their mean.

    Attributes:
        stem: channels after the stem; the last feature map has 32 times as many.
        depths: blocks in each of the four stages.
        image: side of the image in pixels; any, as every stride rounds up.

    Raises:
        InputError: a size below 1, or not four stages.
    """

    stem: int = 64
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    image: int = 224

    def __post_init__(self) -> None:
        _check("ResNet", self.depths, stem=self.stem, image=self.image)

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return 8 * _EXPANSION * self.stem

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images it takes, in pixels."""
        return self.image, self.image

    @property
    def prefix_tokens(self) -> int:
        """Tokens that are no cell of the feature map: none."""
        return 0

    @property
    def tokens(self) -> int:
        """N, the cells of the last feature map."""
        return (-(-self.image // _REDUCTION)) ** 2

    @property
    def output_width(self) -> int:
        """Width of `pooled`."""
        return self.width

    def build(self, dtype: DTypeLike = jnp.float32) -> ResNetModule:
        """The module, computing in `dtype`."""
        return ResNetModule(self, dtype)

    def flops(self) -> float:
        """FLOPs of the forward pass of one image (convolutions; a multiply-add is 2)."""
        return _conv_flops(_halved(self.image), 7, 3, self.stem) + _stages_flops(self, antialias=False)


@dataclass(frozen=True)
class ModifiedResNet:
    """CLIP's ResNet; tokens are the cells of the last feature map, `pooled` comes from the attention pool.

    Attributes:
        stem: channels after the stem, even; the last feature map has 32 times as many.
        depths: blocks in each of the four stages.
        heads: heads of the attention pool; they divide 32 * `stem`.
        output: width of the attention pool's output. CLIP takes it for the embedding: no projection follows.
        image: side of the image in pixels, a multiple of 32.

    Raises:
        InputError: sizes that do not divide or are below 1, or not four stages.
    """

    stem: int = 64
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    heads: int = 32
    output: int = 1024
    image: int = 224

    def __post_init__(self) -> None:
        sizes = {"stem": self.stem, "heads": self.heads, "output": self.output, "image": self.image}
        _check("ModifiedResNet", self.depths, **sizes)
        if self.stem % 2 or self.image % _REDUCTION or self.width % self.heads:
            raise InputError(
                f"ModifiedResNet: stem {self.stem} must be even, image {self.image} a multiple of {_REDUCTION}, and "
                f"heads {self.heads} must divide 32 * stem = {self.width}; change these fields of the image encoder"
            )

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return 8 * _EXPANSION * self.stem

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images it takes, in pixels."""
        return self.image, self.image

    @property
    def prefix_tokens(self) -> int:
        """Tokens that are no cell of the feature map: none."""
        return 0

    @property
    def tokens(self) -> int:
        """N, the cells of the last feature map."""
        return (-(-self.image // _REDUCTION)) ** 2

    @property
    def output_width(self) -> int:
        """Width of `pooled`."""
        return self.output

    def build(self, dtype: DTypeLike = jnp.float32) -> ModifiedResNetModule:
        """The module, computing in `dtype`."""
        return ModifiedResNetModule(self, dtype)

    def flops(self) -> float:
        """FLOPs of the forward pass of one image (matrix products and convolutions; a multiply-add is 2)."""
        half, stem = _halved(self.image), self.stem
        convolutions = ((3, stem // 2), (stem // 2, stem // 2), (stem // 2, stem))
        total = sum(_conv_flops(half, 3, c_in, c_out) for c_in, c_out in convolutions)
        tokens = (self.image // _REDUCTION) ** 2 + 1
        pool = 2 * self.width * (self.width * (1 + 2 * tokens) + self.output) + 4 * tokens * self.width
        return total + _stages_flops(self, antialias=True) + pool


def resnet50(image: int = 224) -> ResNet:
    """ResNet-50: 25.6 M parameters with its classifier, 8.2 GFLOPs an image."""
    return ResNet(image=image)


def resnet101(image: int = 224) -> ResNet:
    """ResNet-101."""
    return ResNet(depths=(3, 4, 23, 3), image=image)


def clip_rn50(image: int = 224) -> ModifiedResNet:
    """The image encoder of CLIP RN50."""
    return ModifiedResNet(image=image)


def _check(kind: str, depths: tuple[int, ...], **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{kind}: {name} is {size}; it must be 1 or more; change this field of the image encoder")
    if len(depths) != _STAGES or min(depths) < 1:
        raise InputError(
            f"{kind}: depths is {depths}; it must be the blocks of each of {_STAGES} stages, 1 or more; change this "
            "field of the image encoder"
        )


def _halved(side: int) -> int:
    """The side of a feature map after a stride of 2."""
    return -(-side // 2)


def _conv_flops(side: int, kernel: int, c_in: int, c_out: int) -> float:
    """`side` is that of the output."""
    return 2.0 * side**2 * kernel**2 * c_in * c_out


def _stages_flops(config: ResNet | ModifiedResNet, antialias: bool) -> float:
    total, side, c_in = 0.0, _halved(_halved(config.image)), config.stem
    for stage, depth in enumerate(config.depths):
        inner, outer = config.stem * 2**stage, config.stem * 2**stage * _EXPANSION
        after = _halved(side) if stage else side
        middle = side if antialias else after
        total += _conv_flops(side, 1, c_in, inner) + _conv_flops(middle, 3, inner, inner)
        total += _conv_flops(after, 1, inner, outer) + _conv_flops(after, 1, c_in, outer)
        again = 2 * _conv_flops(after, 1, outer, inner) + _conv_flops(after, 3, inner, inner)
        total, side, c_in = total + (depth - 1) * again, after, outer
    return total


class BatchNorm(nn.Module):
    """Batch normalisation with torch's numerics: momentum 0.1, eps 1e-5, an unbiased running variance.

    Attributes:
        zero: start with scale 0, so that the block starts as the identity.
    """

    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], deterministic: bool) -> Float[Array, "B h w C"]:
        """Normalises with the running statistics, or if not `deterministic` with those of the global batch.

        Raises:
            InputError: in training, a channel has a single value, which has no variance.
        """
        channels = (x.shape[-1],)
        start = nn.initializers.zeros if self.zero else nn.initializers.ones
        scale = parameter(self, "scale", start, channels, ("norm",))
        bias = parameter(self, "bias", nn.initializers.zeros, channels, ("norm",))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        wide = x.astype(jnp.float32)
        if deterministic:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = _moments(wide, running_mean.value)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * var * (count / (count - 1))
        return ((wide - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias).astype(x.dtype)


def _moments(x: Float[Array, "B h w C"], guess: Float[Array, "C"]) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
    """Mean and biased variance; sums around a guess of the mean need one reduction over the mesh instead of two."""
    if x.size == x.shape[-1]:
        raise InputError(
            f"batch norm in training: one value per channel (input {x.shape}); use a larger batch or image"
        )
    shifted = x - jax.lax.stop_gradient(guess)
    mean = shifted.mean((0, 1, 2))
    var = jnp.square(shifted).mean((0, 1, 2)) - jnp.square(mean)
    return mean + jax.lax.stop_gradient(guess), jnp.maximum(var, 0)


def _conv(channels: int, kernel: int, dtype: DTypeLike, init: Any, name: str, stride: int = 1) -> nn.Conv:
    side = (kernel // 2, kernel // 2)
    axes = ("kernel_height", "kernel_width", "conv_in", "conv_out")
    return nn.Conv(
        channels, (kernel, kernel), (stride, stride), (side, side), use_bias=False, dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes), name=name,
    )  # fmt: skip


def _halve(x: Float[Array, "B h w C"]) -> Float[Array, "B h/2 w/2 C"]:
    return nn.avg_pool(x, (2, 2), (2, 2))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut.

    Attributes:
        inner: channels of the 3x3 convolution; the output has 4 times as many.
        stride: 1 or 2.
        project: whether the shortcut is a convolution (the first block of a stage) or the identity.
        antialias: stride by average pools (CLIP's) rather than by the convolutions.
        dtype: of the computation.
    """

    inner: int
    stride: int
    project: bool
    antialias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], deterministic: bool) -> Float[Array, "B h/s w/s 4*inner"]:
        """One block; `deterministic` takes the running statistics."""
        outer, init = self.inner * _EXPANSION, _fan_in if self.antialias else _fan_out
        pool = self.antialias and self.stride == 2
        stride = 1 if self.antialias else self.stride
        y = _conv(self.inner, 1, self.dtype, init, "conv1")(x)
        y = nn.relu(BatchNorm(name="norm1")(y, deterministic))
        y = _conv(self.inner, 3, self.dtype, init, "conv2", stride)(y)
        y = nn.relu(BatchNorm(name="norm2")(y, deterministic))
        y = _conv(outer, 1, self.dtype, init, "conv3")(_halve(y) if pool else y)
        y = BatchNorm(zero=self.antialias, name="norm3")(y, deterministic)
        if self.project:
            x = _conv(outer, 1, self.dtype, init, "shortcut_conv", stride)(_halve(x) if pool else x)
            x = BatchNorm(name="shortcut_norm")(x, deterministic)
        return constrain(nn.relu(x + y), "batch", "height", "width", "channels")


class Stage(nn.Module):
    """`first`, which changes the shape, then the others under one scan (`rest`, parameters stacked on axis 0)."""

    depth: int
    inner: int
    stride: int
    antialias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], deterministic: bool) -> Float[Array, "B h/s w/s 4*inner"]:
        """All blocks of the stage."""
        x = Bottleneck(self.inner, self.stride, True, self.antialias, self.dtype, name="first")(x, deterministic)
        if self.depth == 1:
            return x
        scan = nn.scan(
            lambda block, x, _: (block(x, deterministic), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=self.depth - 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(Bottleneck(self.inner, 1, False, self.antialias, self.dtype, name="rest"), x, None)[0]


def _stages(config: ResNet | ModifiedResNet, antialias: bool, dtype: DTypeLike) -> list[Stage]:
    return [
        Stage(config.depths[i], config.stem * 2**i, 2 if i else 1, antialias, dtype, name=f"stage{i + 1}")
        for i in range(_STAGES)
    ]


class ResNetModule(nn.Module):
    """See `ResNet`."""

    config: ResNet
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B h w 3"], deterministic: bool) -> EncoderOutput:
        """Tokens [B, N, width], row by row over the feature map, and pooled [B, width]; images of any size."""
        x = _conv(self.config.stem, 7, self.dtype, _fan_out, "stem_conv", 2)(images)
        x = nn.relu(BatchNorm(name="stem_norm")(x, deterministic))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for stage in _stages(self.config, False, self.dtype):
            x = stage(x, deterministic)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return EncoderOutput(tokens, tokens.mean(axis=1))


class ModifiedResNetModule(nn.Module):
    """See `ModifiedResNet`."""

    config: ModifiedResNet
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B h w 3"], deterministic: bool) -> EncoderOutput:
        """Tokens [B, N, width], row by row over the feature map, and pooled [B, output].

        Raises:
            InputError: the images are not of the configured size, for which the attention pool has its positions.
        """
        config = self.config
        if images.shape[1:3] != (config.image, config.image):
            raise InputError(
                f"ModifiedResNet: images are {images.shape[1]} x {images.shape[2]}, the encoder's field `image` says "
                f"{config.image}; make the two agree"
            )
        x = images
        for i, (channels, stride) in enumerate(((config.stem // 2, 2), (config.stem // 2, 1), (config.stem, 1)), 1):
            x = _conv(channels, 3, self.dtype, _fan_in, f"stem_conv{i}", stride)(x)
            x = nn.relu(BatchNorm(name=f"stem_norm{i}")(x, deterministic))
        x = _halve(x)
        for stage in _stages(config, True, self.dtype):
            x = stage(x, deterministic)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return EncoderOutput(tokens, AttentionPool(config.heads, config.output, self.dtype, name="pool")(tokens))


class AttentionPool(nn.Module):
    """Multi-head attention whose only query is the mean token; keys and values are the mean and all tokens."""

    heads: int
    output: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B E"]:
        """Pools N tokens into one vector of width `output`."""
        count, width = tokens.shape[1] + 1, tokens.shape[2]
        head = width // self.heads
        init = nn.initializers.normal(width**-0.5)

        def split(name: str) -> Dense:
            return Dense((self.heads, head), ("embed",), ("heads", "head_dim"), init, dtype=self.dtype, name=name)

        x = jnp.concatenate([tokens.mean(axis=1, keepdims=True), tokens], axis=1)
        x = x + parameter(self, "positions", init, (count, width), ("positions", "embed")).astype(self.dtype)
        query, key, value = split("query")(x[:, 0]), split("key")(x), split("value")(x)
        scores = jnp.einsum("bhk,bnhk->bhn", query, key, preferred_element_type=jnp.float32) * head**-0.5
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bhn,bnhk->bhk", weights, value)
        return Dense((self.output,), ("heads", "head_dim"), ("projection",), init, dtype=self.dtype, name="out")(mixed)
