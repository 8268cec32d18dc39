"""BLIP fine-tuned to caption: the decoder writes on after a prompt (Li et al. 2022, section 5.2).

    image -> image encoder -> tokens -> decoder: [DEC] a picture of | two dogs play in the snow [SEP]

The prompt is read and not learned: `labels` (vlmax/data/captions.py) begin with the first token after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vlmax.models.decoders.bert import BERTModule
from vlmax.objectives.language_device import IGNORED
from vlmax.systems.blip_model import MED, begun, check_writing
from vlmax.systems.system import Batch, Carried, Metrics, Params, Prompted


@dataclasses.dataclass(frozen=True)
class BLIPCaption:
    """The system: an image encoder and a whole decoder.

    Raises:
      InputError: texts that the model has no room for, a number outside its bounds.
    """

    model: MED = MED()
    """Image encoder and BERT."""
    length: int = 40
    """T, tokens of prompt and caption with their marks and padding."""
    label_smoothing: float = 0.1
    vocabulary_chunk: int = 1024
    """Tokens whose logits are in memory at a time."""

    def __post_init__(self):
        self.model.check_lengths(length=self.length)
        check_writing(self.label_smoothing, self.vocabulary_chunk)

    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images, texts `[CLS] prompt caption [SEP]`, and what each of their places predicts."""
        return self.model.inputs(text=self.length, labels=self.length)

    def init(self, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh boxed parameters; carried: statistics of the image encoder where it has some."""
        first, second = jax.random.split(rng)
        image, carried = self.model.init_image(first, batch["image"])
        return {"image": image, "decoder": self.model.init_decoder(second, batch["text"])}, carried

    def counts(self, batch: Batch) -> Float[Array, ""]:
        """How many tokens of the batch are learned; at least 1."""
        return jnp.maximum(jnp.sum(batch["labels"] != IGNORED), 1).astype(jnp.float32)

    def share(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray, counts: Float[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """What a microbatch adds to the mean over `counts` tokens."""
        first, second = jax.random.split(rng)
        seen, carried = self.model.see(params["image"], carried, batch["image"], first)
        loss, tokens, sums = self.model.writing_loss(
            params["decoder"],
            begun(batch["text"], self.model.decode),
            batch["labels"],
            seen.tokens,
            second,
            chunk=self.vocabulary_chunk,
            label_smoothing=self.label_smoothing,
        )
        metrics = {"nll": sums["nll"] / counts, "accuracy": sums["correct"] / counts, "tokens": tokens}
        return loss / counts, (metrics, carried)

    def loss(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """The mean over the learned tokens of the batch."""
        return self.share(params, carried, batch, rng, self.counts(batch))

    def constrain(self, params: Params) -> Params:
        """The parameters as they are."""
        return params

    def parts(self) -> Mapping[str, str]:
        """Part -> pattern over parameter paths."""
        return {"image encoder": "image/.*", "text decoder": "decoder/.*"}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises `InputError` where the tokenizer's ids are not those of the model."""
        self.model.check_tokenizer(tokenizer)

    def locked(self) -> tuple[str, ...]:
        """Everything trains."""
        return ()

    def flops_per_example(self) -> Mapping[str, float]:
        """Forward FLOPs by part."""
        decoder = self.model.decoder_module().config
        return {
            "image encoder": self.model.image.flops(),
            "text decoder": decoder.flops(self.length, self.model.image.tokens),
        }

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """None: a fine-tuning begins with pretrained weights."""
        return None

    # What the evaluations use: Writes.

    def decoder_module(self) -> BERTModule:
        """What writes."""
        return self.model.decoder_module()

    def decoder_params(self, params: Params) -> Params:
        """Its parameters."""
        return {"params": params["decoder"]}

    def prompted(self, params: Params, carried: Carried, batch: Batch) -> Prompted:
        """A prompt, which begins with [DEC], beside the image's tokens."""
        seen, _ = self.model.see(params["image"], carried, batch["image"])
        return Prompted(batch["prompt"], batch["prompt_valid"], seen.tokens)
