"""BLIP fine-tuned for retrieval: the contrast and the matching of pretraining, by images (Li et al. 2022, section 5.1).

All captions of an image are right for it, in the batch and in the queues, and no negatives of each other: the feature
`group` says which examples are of one image. At inference the features find candidates, and `match` re-ranks them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from vlmax.systems.blip_alignment import PARTS, Alignment
from vlmax.systems.blip_model import MED
from vlmax.systems.system import Batch, Carried, Metrics, Params


@dataclasses.dataclass(frozen=True)
class BLIPRetrieval:
    """The system; its parameters are those of pretraining without the decoder.

    Raises:
      InputError: texts that the model has no room for.
    """

    model: MED = MED()
    """Image encoder and BERT."""
    alignment: Alignment = Alignment(floor=0.0)
    """ITC and ITM."""
    length: int = 35
    """T, tokens of a text with its marks and padding."""

    def __post_init__(self):
        self.model.check_lengths(length=self.length)

    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images, texts `[CLS] ... [SEP]`, and the image's id."""
        return {**self.model.inputs(text=self.length), "group": jax.ShapeDtypeStruct((), jnp.int32)}

    def init(self, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh boxed parameters; carried: twins, queues, statistics of the image encoder where it has some."""
        return self.alignment.init(self.model, rng, batch)

    def loss(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """ITC + ITM of the global batch; raises `InputError` where the batch does not divide the queue."""
        aligned = self.alignment.losses(self.model, params, carried, batch, rng)
        return aligned.loss, (aligned.metrics, aligned.carried)

    def constrain(self, params: Params) -> Params:
        """Clamps the temperature."""
        return self.alignment.constrain(params)

    def parts(self) -> Mapping[str, str]:
        """Part -> pattern over parameter paths."""
        return {"image encoder": "image/.*", "text encoder": "text/.*", **PARTS}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises `InputError` where the tokenizer's ids are not those of the model."""
        self.model.check_tokenizer(tokenizer)

    def check_batch_size(self, size: int) -> None:
        """Raises `InputError` where a batch of so many examples does not divide the queue."""
        self.alignment.check_batch_size(size)

    def locked(self) -> tuple[str, ...]:
        """Everything trains."""
        return ()

    def flops_per_example(self) -> Mapping[str, float]:
        """Forward FLOPs by part."""
        return self.alignment.flops(self.model, self.length)

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """None: a fine-tuning begins with pretrained weights."""
        return None

    # What the evaluations use: Embeds, Matches (and Filters of vlmax/bootstrapping).

    def image_features(self, params: Params, carried: Carried, image: UInt8[Array, "B h w 3"]) -> Float[Array, "B E"]:
        """Unit vectors of images."""
        return self.alignment.image_features(self.model, params, carried, image)

    def text_features(self, params: Params, carried: Carried, text: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """Unit vectors of texts."""
        return self.alignment.text_features(self.model, params, text)

    def image_tokens(self, params: Params, carried: Carried, image: UInt8[Array, "B h w 3"]) -> Float[Array, "B N C"]:
        """What `match` reads of images."""
        return self.model.see(params["image"], carried, image)[0].tokens

    def match(
        self, params: Params, carried: Carried, image_tokens: Float[Array, "B N C"], text: Int[Array, "B T"]
    ) -> Float[Array, " B"]:
        """The logit of "match" of every pair."""
        return self.alignment.match_logits(self.model, params, image_tokens, text)[:, 1]

    def match_probability(
        self, params: Params, carried: Carried, image_tokens: Float[Array, "B N C"], text: Int[Array, "B T"]
    ) -> Float[Array, " B"]:
        """The probability that each text is one of its image's, as a filter of captions needs it."""
        return jax.nn.softmax(self.alignment.match_logits(self.model, params, image_tokens, text))[:, 1]
