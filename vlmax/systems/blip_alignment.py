"""What BLIP's pretraining and its fine-tuning for retrieval share: contrast with momentum (ITC) and matching (ITM).

Li et al. 2022, section 3.2. Both losses are over the global batch, wherever its rows lie; the public code takes the
contrast's own batch and pretraining's negatives from one GPU's share of it. On one device they are the same.

What is carried from step to step:

    momentum   the slow twins of the encoders and projections, sharded like them; they begin as what those are at the
               first step, so also where these come from a checkpoint
    queue      the twins' features of earlier batches, of images and texts, the groups of both, and the next place
    updates    how many steps were made
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vlmax.errors import InputError
from vlmax.models.layers.axes import constrain, mesh_axes
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.norms import unit
from vlmax.objectives.matching import Negatives, draw_negatives, matching_loss, take_rows
from vlmax.objectives.momentum import NOBODY, average, enqueue, ramp, soft_contrastive_both
from vlmax.systems.blip_model import MED, alone, begun, per_row
from vlmax.systems.system import Batch, Carried, Metrics, Params

PARTS = {
    "projections": "(image|text)_projection/.*",
    "matching head": "matching/.*",
    "objective": "objective/.*",
}
LOWEST, HIGHEST = 0.001, 0.5
"""Bounds of the temperature."""
QUEUE = ("queue", None)
"""Logical axes of a queue of features."""
_torch = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # of a linear layer in torch


class Aligned(NamedTuple):
    """What the two losses leave: their sum, their parts, what is carried, and the images' tokens for other losses."""

    loss: Float[Array, ""]
    metrics: Metrics
    carried: Carried
    image_tokens: Float[Array, "B N C"]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The two losses; the defaults are those of pretraining.

    Raises:
      InputError: a number outside its bounds.
    """

    embed: int = 256
    """E, the width of the joint space."""
    temperature: float = 0.07
    """At the start; it is learned as it is, within [0.001, 0.5]."""
    momentum: float = 0.995
    """Of the twins' old value at a step."""
    queue: int = 57_600
    """K, how many earlier features of either side are kept; a multiple of the batch size."""
    alpha: float = 0.4
    """Weight of the twins' opinion in the targets, after the ramp."""
    ramp_steps: int = 0
    """Steps over which alpha grows from 0."""
    floor: float = 1e-4
    """Added to the probability of every negative of another group before one is drawn; the public code has 0 in
    fine-tuning."""
    chunk: int = 4096
    """Features of the queue that a batch is held against at a time."""

    def __post_init__(self):
        if not 0 <= self.momentum < 1 or not 0 <= self.alpha <= 1 or self.floor < 0:
            raise InputError(
                f"system.alignment: momentum is {self.momentum}, alpha {self.alpha} and floor {self.floor}; they must "
                "be at least 0 and below 1, 0 to 1, and not negative"
            )
        least = {"embed": 1, "queue": 1, "ramp_steps": 0, "chunk": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"system.alignment.{name} is {getattr(self, name)}; it must be at least {value}")
        if not LOWEST <= self.temperature <= HIGHEST:
            raise InputError(
                f"system.alignment.temperature is {self.temperature}; it must be {LOWEST} to {HIGHEST}, between which "
                "it is kept"
            )

    def check_batch_size(self, size: int) -> None:
        """Raises `InputError` where batches of so many examples do not fill the queue without a rest."""
        if self.queue % size:
            raise InputError(
                f"system.alignment.queue is {self.queue}, which the batch of {size} does not divide, so that it could "
                f"not be filled batch by batch; the nearest that it does is {max(1, round(self.queue / size)) * size}"
            )

    def init(self, model: MED, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh parameters and carried state, boxed."""
        keys = jax.random.split(rng, 7)
        image, statistics = model.init_image(keys[0], batch["image"])
        params = {
            "image": image,
            "text": model.init_encoder(keys[1], batch["text"]),
            "image_projection": self._projection().init(keys[2], jnp.zeros((1, model.image.output_width)))["params"],
            "text_projection": self._projection().init(keys[3], jnp.zeros((1, model.text.width)))["params"],
            "matching": _matching_head().init(keys[4], jnp.zeros((1, model.text.width)))["params"],
            "objective": {"temperature": jnp.full((), self.temperature, jnp.float32)},
        }
        box = nn.with_logical_partitioning(lambda key: unit(jax.random.normal(key, (self.queue, self.embed))), QUEUE)
        groups = nn.with_logical_partitioning(lambda: jnp.full(self.queue, NOBODY, jnp.int32), QUEUE[:1])
        queue = {"image": box(keys[5]), "text": box(keys[6]), "group": groups(), "next": jnp.zeros((), jnp.int32)}
        twins = jax.tree.map(jnp.copy, twinned(params))
        return params, {**statistics, "momentum": twins, "queue": queue, "updates": jnp.zeros((), jnp.int32)}

    def losses(self, model: MED, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray) -> Aligned:
        """Both losses of the global batch, in training.

        Args:
          model: what reads images and texts.
          params: the system's, with the names of `init`.
          carried: as it stands before the step.
          batch: `image`, `text`, and `group` where examples of one group are no negatives of each other.
          rng: of dropout and of the draw of negatives.

        Raises:
          InputError: the batch does not divide the queue.
        """
        keys = jax.random.split(rng, 6)
        text = batch["text"]
        self.check_batch_size(len(text))
        group = batch["group"] if "group" in batch else jnp.arange(len(text), dtype=jnp.int32)
        temperature = params["objective"]["temperature"]

        seen, statistics = model.see(params["image"], carried, batch["image"], keys[0])
        features = self.features(params, seen.pooled, model.read(params["text"], text, keys[1]))
        twins, slow = self._twins(model, params, carried, batch, keys[2])
        alpha = ramp(carried["updates"], self.ramp_steps, self.alpha)
        contrast, parts = soft_contrastive_both(
            features["image"],
            features["text"],
            slow,
            carried["queue"],
            temperature=temperature,
            alpha=alpha,
            group=group,
            axes=mesh_axes("batch"),
            chunk=self.chunk,
        )

        other_text = draw_negatives(keys[3], self._odds(features["image"], slow["text"], temperature), group)
        other_image = draw_negatives(keys[4], self._odds(features["text"], slow["image"], temperature), group)
        logits = self._matched(model, params, text, seen.tokens, other_text, other_image, keys[5])
        matching, told = matching_loss(logits, other_image.exists, other_text.exists)

        groups = group if "group" in batch else jnp.full_like(group, NOBODY)
        queue = self._enqueued(carried["queue"], {**slow, "group": groups})
        metrics = {
            "contrastive_loss": contrast,
            **parts,
            "matching_loss": matching,
            **told,
            "alpha": alpha,
            "temperature": temperature,
        }
        after = {**statistics, "momentum": twins, "queue": queue, "updates": carried["updates"] + 1}
        return Aligned(contrast + matching, metrics, after, seen.tokens)

    def features(
        self, params: Params, pooled: Float[Array, "B C"], read: Float[Array, "B T D"]
    ) -> dict[str, Float[Array, "B E"]]:
        """Unit vectors of both sides: `image` and `text`."""
        return {"image": self.image_feature(params, pooled), "text": self.text_feature(params, read)}

    def image_feature(self, params: Params, pooled: Float[Array, "B C"]) -> Float[Array, "B E"]:
        """The unit vector of an image."""
        return self._unit(params["image_projection"], pooled)

    def text_feature(self, params: Params, read: Float[Array, "B T D"]) -> Float[Array, "B E"]:
        """The unit vector of a text."""
        return self._unit(params["text_projection"], read[:, 0])

    def image_features(self, model: MED, params: Params, carried: Carried, image: Array) -> Float[Array, "B E"]:
        """Unit vectors of images, as in evaluation."""
        return self.image_feature(params, model.see(params["image"], carried, image)[0].pooled)

    def text_features(self, model: MED, params: Params, text: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """Unit vectors of texts, as in evaluation."""
        return self.text_feature(params, model.read(params["text"], text))

    def match_logits(
        self, model: MED, params: Params, image_tokens: Float[Array, "B N C"], text: Int[Array, "B T"]
    ) -> Float[Array, "B 2"]:
        """The logits of "no match" and "match" of every pair, as in evaluation."""
        read = model.ground(params["text"], begun(text, model.encode), image_tokens)
        return _head(params, read[:, 0])

    def constrain(self, params: Params) -> Params:
        """Clamps the temperature."""
        temperature = jnp.clip(params["objective"]["temperature"], LOWEST, HIGHEST)
        return {**params, "objective": {"temperature": temperature}}

    def flops(self, model: MED, length: int) -> dict[str, float]:
        """Forward FLOPs of one example by part; the twins', which have no backward pass, count a third."""
        text, grounded = dataclasses.replace(model.encoder_config(), cross_width=None), model.encoder_config()
        stack, twin = grounded.stack(), 1 + 1 / 3
        once = 4 * stack.depth * model.image.tokens * model.image.width * stack.width  # keys and values for two texts
        return {
            "image encoder": twin * model.image.flops(),
            "text encoder": twin * text.flops(length) + 3 * grounded.flops(length, model.image.tokens) - once,
            "projections": twin * 2 * self.embed * (model.image.output_width + model.text.width),
        }

    def _twins(
        self, model: MED, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Params, dict[str, Float[Array, "B E"]]]:
        """The slow twins after this step's average, and what they make of the batch, without gradient."""
        first, second = jax.random.split(rng)
        momentum = jnp.where(carried["updates"] == 0, 0.0, self.momentum)
        twins = average(carried["momentum"], twinned(params), momentum)
        seen, _ = model.see(twins["image"], carried, batch["image"], first)
        read = model.read(twins["text"], batch["text"], second)
        return twins, jax.lax.stop_gradient(self.features(twins, seen.pooled, read))

    def _matched(
        self,
        model: MED,
        params: Params,
        text: Int[Array, "B T"],
        image_tokens: Float[Array, "B N C"],
        other_text: Negatives,
        other_image: Negatives,
        rng: PRNGKeyArray,
    ) -> Float[Array, "B 3 2"]:
        """Of each row: its own pair, its text with another image, and its image with another text."""
        keys, length = jax.random.split(rng), text.shape[1]
        first = begun(text, model.encode)
        second = per_row(jnp.take(constrain(first, None, None), other_text.index, axis=0))
        # Both texts of an image are read as two documents in one row: keys and values of its tokens are made once.
        segments = jnp.concatenate([model.segments(first), 2 * model.segments(second)], axis=1)
        both = model.ground(
            params["text"],
            jnp.concatenate([first, second], axis=1),
            image_tokens,
            keys[0],
            segments=segments,
            positions=jnp.arange(2 * length)[None] % length,
        )
        others = take_rows(image_tokens, other_image.index, axes=mesh_axes("batch"))
        third = model.ground(params["text"], first, others, keys[1])
        return _head(params, jnp.stack([both[:, 0], third[:, 0], both[:, length]], axis=1))

    def _odds(self, queries: Array, others: Array, temperature: Float[Array, ""]) -> Float[Array, "B B"]:
        """Logarithms of how likely each row's others are drawn, up to what must not be; rows over the devices."""
        products = jnp.dot(queries, constrain(others, None, None).T, precision=jax.lax.Precision.HIGHEST)
        log_p = jax.nn.log_softmax(constrain(products, "batch", None) / temperature)
        return jnp.logaddexp(log_p, jnp.log(jnp.float32(self.floor)))

    def _enqueued(self, queue: dict[str, Array], new: dict[str, Array]) -> dict[str, Array]:
        """The queue with a batch's features and groups in it."""
        place, after = queue["next"], {}
        for name, rows in new.items():
            rest = [None] * (rows.ndim - 1)
            after[name] = constrain(enqueue(queue[name], constrain(rows, None, *rest), place), "queue", *rest)
        return {**after, "next": (place + len(new["group"])) % self.queue}

    def _projection(self) -> Dense:
        return Dense((self.embed,), ("embed",), ("projection",), _torch)

    def _unit(self, params: Params, x: Float[Array, "B D"]) -> Float[Array, "B E"]:
        projected = self._projection().clone(dtype=x.dtype).apply({"params": params}, x)
        return constrain(unit(projected), "batch", "act_embed")


def twinned(params: Params) -> Params:
    """What has a slow twin: encoders and projections, without the text encoder's attention to images."""
    names = ("image", "image_projection", "text_projection")
    return {"text": alone(params["text"]), **{name: params[name] for name in names}}


def _matching_head(dtype: Any = jnp.float32) -> Dense:
    return Dense((2,), ("embed",), ("classes",), _torch, dtype=dtype)


def _head(params: Params, x: Float[Array, "*n D"]) -> Float[Array, "*n 2"]:
    """Logits of "no match" and "match"."""
    return _matching_head(x.dtype).apply({"params": params["matching"]}, x).astype(jnp.float32)
