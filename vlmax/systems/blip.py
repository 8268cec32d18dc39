r"""BLIP: one model that understands and writes, pretrained with three losses (Li et al. 2022, arXiv 2201.12086).

    image -> image encoder -> tokens ----+-------------------------+
                                |        |                         |
                               ITC      ITM                        LM
                                |        |                         |
    text  -> text encoder ------+   image-grounded encoder   image-grounded decoder

ITC  contrast of image and text with momentum encoders, queues of their features and soft targets;
ITM  does this text belong to this image, with hard negatives that ITC finds in the global batch;
LM   the text, written word by word from the image, with label smoothing.

The sum of the three is minimised. Encoder and decoder share all parameters but self-attention (table 3: `tied`).
systems/blip_model.py has the model, blip_alignment.py the losses that fine-tuning for retrieval has too; the
fine-tunings are in blip_caption.py, blip_retrieval.py, blip_vqa.py and blip_nlvr2.py.

The mean of each loss is over the global batch. Where the public code (github.com/salesforce/BLIP) differs from the
paper, the defaults are the code's; attention weights are not dropped out, unlike there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from vlmax.models.decoders.bert import BERTModule
from vlmax.systems.blip_alignment import PARTS, Alignment
from vlmax.systems.blip_model import MED, Tied, begun, check_writing, own_of, with_shared
from vlmax.systems.system import Batch, Carried, Metrics, Params, Prompted


@dataclasses.dataclass(frozen=True)
class BLIP:
    """The system; the defaults are ViT-B/16 as the public code pretrains it.

    Raises:
      InputError: texts that the model has no room for, a number outside its bounds.
    """

    model: MED = MED()
    """Image encoder and BERT."""
    alignment: Alignment = Alignment()
    """ITC and ITM."""
    length: int = 30
    """T, tokens of a text with its marks and padding."""
    tied: Tied = "all_but_self_attention"
    """What decoder and encoder share of their embeddings and layers (table 3); the head is always the decoder's."""
    label_smoothing: float = 0.1
    """Of LM."""
    vocabulary_chunk: int = 1024
    """Tokens whose logits are in memory at a time."""

    def __post_init__(self):
        self.model.check_lengths(length=self.length)
        check_writing(self.label_smoothing, self.vocabulary_chunk)

    # What the trainer and the planner see.

    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images, and texts `[CLS] ... [SEP]`; a feature `group` int32 is read where there is one.

        Pairs of one group are right for each other in ITC and no negatives of each other in ITM.
        """
        return self.model.inputs(text=self.length)

    def init(self, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh boxed parameters; carried: twins, queues, statistics of the image encoder where it has some."""
        first, second = jax.random.split(rng)
        params, carried = self.alignment.init(self.model, first, batch)
        decoder = own_of(self.model.init_decoder(second, batch["text"]), self.tied)
        return {**params, "decoder": decoder}, carried

    def loss(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """ITC + ITM + LM of the global batch.

        Raises:
          InputError: the batch does not divide the queue.
        """
        first, second = jax.random.split(rng)
        aligned = self.alignment.losses(self.model, params, carried, batch, first)
        text = begun(batch["text"], self.model.decode)
        total, count, sums = self.model.writing_loss(
            self._decoder(params),
            text,
            self.model.next_tokens(text),
            aligned.image_tokens,
            second,
            chunk=self.vocabulary_chunk,
            label_smoothing=self.label_smoothing,
        )
        count = jnp.maximum(count, 1)
        writing = {"language_loss": total / count, "language_accuracy": sums["correct"] / count}
        return aligned.loss + total / count, ({**aligned.metrics, **writing}, aligned.carried)

    def constrain(self, params: Params) -> Params:
        """Clamps the temperature."""
        return self.alignment.constrain(params)

    def parts(self) -> Mapping[str, str]:
        """Part -> pattern over parameter paths."""
        return {"image encoder": "image/.*", "text encoder": "text/.*", "text decoder": "decoder/.*", **PARTS}

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
        """Forward FLOPs by part; the twins', which have no backward pass, count a third."""
        decoder = self.model.decoder_module().config
        return {
            **self.alignment.flops(self.model, self.length),
            "text decoder": decoder.flops(self.length, self.model.image.tokens),
        }

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """None: a run begins with pretrained encoders."""
        return None

    # What the evaluations use: Embeds, Matches (and Filters of vlmax/bootstrapping), Writes.

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

    def decoder_module(self) -> BERTModule:
        """What writes."""
        return self.model.decoder_module()

    def decoder_params(self, params: Params) -> Params:
        """Its parameters."""
        return {"params": self._decoder(params)}

    def prompted(self, params: Params, carried: Carried, batch: Batch) -> Prompted:
        """A prompt, which begins with [DEC], beside the image's tokens."""
        return Prompted(batch["prompt"], batch["prompt_valid"], self.image_tokens(params, carried, batch["image"]))

    def _decoder(self, params: Params) -> Params:
        return with_shared(params["decoder"], params["text"])
