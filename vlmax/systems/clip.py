r"""CLIP and its kin: two encoders, one space, one contrastive loss.

Radford et al. 2021 (CLIP: softmax loss, section 2.3), Zhai et al. 2023 (SigLIP: sigmoid loss, section 3.2),
Zhai et al. 2022 (LiT: the image encoder locked), Li et al. 2023 (FLIP: patch dropout, in the image encoder).

    uint8 images -> normalise -> image encoder -> projection -> unit vectors [B, E] \
                                                                                     contrastive loss
    tokens       ->              text encoder  -> projection -> unit vectors [B, E] /
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from vlmax.errors import InputError
from vlmax.models.encoders.resnet import ModifiedResNet, ResNet
from vlmax.models.encoders.text import TextEncoder
from vlmax.models.encoders.vit import ViT
from vlmax.models.layers.axes import constrain, mesh_axes, parameter
from vlmax.models.layers.norms import unit
from vlmax.models.pixels import OPENAI_MEAN, OPENAI_STD, normalised
from vlmax.objectives.contrastive import sigmoid_contrastive, softmax_contrastive
from vlmax.systems.system import Batch, Carried, Metrics, Params


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Symmetric InfoNCE over the global batch (CLIP, figure 3)."""

    temperature: float = 0.07
    """At initialisation; its inverse multiplies the similarities and is learned as a logarithm."""
    max_scale: float = 100.0
    """The learned inverse temperature is clamped to [1, max_scale] after every step."""
    chunk: int = 1024
    """Rows of the other side that are held against the local ones at a time."""

    def init(self) -> dict[str, float]:
        """Initial values of the learned scalars."""
        return {"log_scale": -math.log(self.temperature)}

    def clamp(self, scalars: Mapping[str, Array]) -> dict[str, Array]:
        """The scalars inside their bounds."""
        return {"log_scale": jnp.clip(scalars["log_scale"], 0.0, math.log(self.max_scale))}

    def __call__(
        self,
        image: Float[Array, "B E"],
        text: Float[Array, "B E"],
        scalars: Mapping[str, Array],
        group: Int[Array, " B"] | None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of unit vectors and its metrics; pairs of one group are no negatives of each other."""
        axes, log_scale = mesh_axes("batch"), scalars["log_scale"]
        return softmax_contrastive(image, text, log_scale, axes=axes, chunk=self.chunk, group=group)

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """Nearly orthogonal features see every one of the B texts alike: ln B."""
        return math.log(batch_size)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """Every pair a binary question of its own (SigLIP, algorithm 1)."""

    scale: float = 10.0
    """Initial factor of the similarities, learned as a logarithm."""
    bias: float = -10.0
    """Initial bias, learned."""
    chunk: int = 1024
    """Rows of the other side that are held against the local ones at a time."""

    def init(self) -> dict[str, float]:
        """Initial values of the learned scalars."""
        return {"log_scale": math.log(self.scale), "bias": self.bias}

    def clamp(self, scalars: Mapping[str, Array]) -> dict[str, Array]:
        """SigLIP's scalars have no bounds."""
        return dict(scalars)

    def __call__(
        self,
        image: Float[Array, "B E"],
        text: Float[Array, "B E"],
        scalars: Mapping[str, Array],
        group: Int[Array, " B"] | None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of unit vectors and its metrics; pairs of one group are no negatives of each other."""
        axes, log_scale, bias = mesh_axes("batch"), scalars["log_scale"], scalars["bias"]
        return sigmoid_contrastive(image, text, log_scale, bias, axes=axes, chunk=self.chunk, group=group)

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """At similarity 0: one positive and B - 1 negatives per example."""
        return math.log1p(math.exp(-self.bias)) + (batch_size - 1) * math.log1p(math.exp(self.bias))


@dataclasses.dataclass(frozen=True)
class CLIP:
    """Any image encoder with any text encoder in one space.

    Raises:
      InputError: a part without projection whose width is not `embed`.
    """

    image: ViT | ResNet | ModifiedResNet
    text: TextEncoder
    embed: int = 512
    """Width E of the joint space."""
    objective: Softmax | Sigmoid = Softmax()
    image_projection: bool = True
    """A bias-free projection after the image encoder; off where the encoder ends in the joint space itself."""
    text_projection: bool = True
    """A bias-free projection after the text encoder."""
    lock_image: bool = False
    """LiT: the image encoder is frozen and runs as in evaluation."""
    mean: tuple[float, float, float] = OPENAI_MEAN
    """Of the pixels in [0, 1], by colour."""
    std: tuple[float, float, float] = OPENAI_STD
    dtype: str = "bfloat16"
    """What the encoders compute in; parameters, features and loss are float32."""

    def __post_init__(self):
        for side, encoder, projected in (
            ("image", self.image, self.image_projection),
            ("text", self.text, self.text_projection),
        ):
            if not projected and encoder.output_width != self.embed:
                raise InputError(
                    f"system.{side}: its output is {encoder.output_width} wide and system.embed is {self.embed}; "
                    f"set system.embed to {encoder.output_width} or system.{side}_projection to True"
                )
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"system.dtype is {self.dtype!r}; it must be float32 or bfloat16")

    # What the trainer, the evaluations and the planner see.

    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images uint8 `[height, width, 3]`, text int32 `[T]`; a feature `group` int32 is read where there is one."""
        height, width = self.image.image_size
        return {
            "image": jax.ShapeDtypeStruct((height, width, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((self.text.context,), jnp.int32),
        }

    def init(self, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh boxed parameters, and the batch statistics of a ResNet as carried state."""
        variables = dict(_CLIPModule(self).init(rng, batch["image"], batch["text"]))
        return variables.pop("params"), variables

    def encode(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[dict[str, Float[Array, "B E"]], Carried]:
        """Unit vectors of both sides, in training mode."""
        (image, text), changed = _CLIPModule(self).apply(
            {"params": params, **carried},
            batch["image"],
            batch["text"],
            deterministic=False,
            rngs={"dropout": rng},
            mutable=list(carried),
        )
        return {"image": image, "text": text}, dict(changed)

    def objective_of(
        self, params: Params, features: Mapping[str, Float[Array, "B E"]], batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """The contrastive loss over the global batch."""
        scalars = params["objective"]
        loss, metrics = self.objective(features["image"], features["text"], scalars, batch.get("group"))
        learned = {"scale": jnp.exp(scalars["log_scale"])} | ({"bias": scalars["bias"]} if "bias" in scalars else {})
        return loss, {**metrics, **learned}

    def loss(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """`objective_of` after `encode`."""
        features, carried = self.encode(params, carried, batch, rng)
        loss, metrics = self.objective_of(params, features, batch)
        return loss, (metrics, carried)

    def constrain(self, params: Params) -> Params:
        """Clamps the temperature."""
        return {**params, "objective": self.objective.clamp(params["objective"])}

    def parts(self) -> Mapping[str, str]:
        """Part -> pattern over parameter paths."""
        parts = {"image encoder": "image/.*", "text encoder": "text/.*", "objective": "objective/.*"}
        if self.image_projection or self.text_projection:
            parts["projections"] = "(image|text)_projection/.*"
        return parts

    def reads(self) -> Mapping[str, tuple[str, ...]]:
        """The projections read both encoders."""
        return {"projections": ("image encoder", "text encoder")}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises InputError where ids pass the embedding, or the end mark is not where the encoder looks for it."""
        if tokenizer.vocab_size > self.text.vocab:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the text encoder embeds {self.text.vocab}; set "
                f"system.text.vocab to at least {tokenizer.vocab_size}, or take the tokenizer that belongs to the model"
            )
        if self.text.pool == "highest" and tokenizer.eos != tokenizer.vocab_size - 1:
            raise InputError(
                f"system.text.pool is 'highest', so the end mark must have the highest id; this tokenizer's is "
                f"{tokenizer.eos} of {tokenizer.vocab_size}: set system.text.pool to 'last', or take another tokenizer"
            )

    def locked(self) -> tuple[str, ...]:
        """Patterns of the parameters that the system itself keeps fixed."""
        return ("image/.*",) if self.lock_image else ()

    def flops_per_example(self) -> Mapping[str, float]:
        """Forward FLOPs by part; the similarities (2 B E an example) are left out."""
        projections = sum(
            2 * encoder.output_width * self.embed
            for encoder, projected in ((self.image, self.image_projection), (self.text, self.text_projection))
            if projected
        )
        return {
            "image encoder": self.image.flops(),
            "text encoder": self.text.flops(),
            "projections": float(projections),
        }

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """See the objective."""
        return self.objective.expected_initial_loss(batch_size)

    # What the evaluations use.

    def image_features(self, params: Params, carried: Carried, image: UInt8[Array, "B h w 3"]) -> Float[Array, "B E"]:
        """Unit vectors of images, as in evaluation."""
        return _CLIPModule(self).apply({"params": params, **carried}, image, method="encode_image")

    def text_features(self, params: Params, carried: Carried, text: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """Unit vectors of texts, as in evaluation."""
        return _CLIPModule(self).apply({"params": params, **carried}, text, method="encode_text")


class _CLIPModule(nn.Module):
    """The two encoders and their projections; the learned scalars of the objective."""

    config: CLIP

    def setup(self):
        config = self.config
        dtype = jnp.dtype(config.dtype)
        self.image = config.image.build(dtype)
        self.text = config.text.build(dtype)
        if config.image_projection:
            self.image_projection = _Projection(config.embed, dtype)
        if config.text_projection:
            self.text_projection = _Projection(config.embed, dtype)
        self.objective = _Scalars(tuple(sorted(config.objective.init().items())))

    def encode_image(self, image: UInt8[Array, "B h w 3"], deterministic: bool = True) -> Float[Array, "B E"]:
        config = self.config
        pixels = normalised(image, config.mean, config.std, config.dtype)
        pooled = self.image(pixels, deterministic=deterministic or config.lock_image).pooled
        if config.lock_image:
            pooled = jax.lax.stop_gradient(pooled)
        if config.image_projection:
            pooled = self.image_projection(pooled)
        return constrain(unit(pooled), "batch", "act_embed")

    def encode_text(self, text: Int[Array, "B T"], deterministic: bool = True) -> Float[Array, "B E"]:
        pooled = self.text(text, deterministic=deterministic).pooled
        if self.config.text_projection:
            pooled = self.text_projection(pooled)
        return constrain(unit(pooled), "batch", "act_embed")

    def __call__(self, image, text, deterministic: bool = True):
        self.objective()
        return self.encode_image(image, deterministic), self.encode_text(text, deterministic)


class _Projection(nn.Module):
    """A bias-free map into the joint space, initialised with standard deviation width^-0.5 (CLIP)."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B E"]:
        init = nn.initializers.normal(x.shape[-1] ** -0.5)
        kernel = parameter(self, "kernel", init, (x.shape[-1], self.features), ("embed", "projection"))
        return x @ kernel.astype(self.dtype)


class _Scalars(nn.Module):
    """Learned numbers by name."""

    values: tuple[tuple[str, float], ...]

    @nn.compact
    def __call__(self) -> dict[str, Float[Array, ""]]:
        constant = nn.initializers.constant
        return {name: parameter(self, name, constant(value), (), ()) for name, value in self.values}
