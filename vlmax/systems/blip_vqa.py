"""BLIP fine-tuned to answer questions about images (Li et al. 2022, section 5.3).

    image    -> image encoder -> tokens
    question -> image-grounded encoder  -> states
    answer   -> decoder that attends to the states: [DEC] two dogs [SEP]

Each of a question's answers is learned with the share of people who gave it. Encoder and decoder are no longer tied, as
in the public code; the decoder attends to states as wide as the text.

At inference it writes an answer, or finds the likeliest of given ones, as the paper does (question_answering.py of
vlmax/evaluation; the public code compares losses with label smoothing there, vlmax likelihoods).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vlmax.errors import InputError
from vlmax.models.decoders.bert import BERTModule
from vlmax.systems.blip_model import MED, begun, check_writing, per_row
from vlmax.systems.system import Batch, Carried, Metrics, Params, Prompted


@dataclasses.dataclass(frozen=True)
class BLIPVQA:
    """The system.

    Raises:
      InputError: texts that the model has no room for, a number outside its bounds.
    """

    model: MED = MED()
    """Image encoder and BERT."""
    length: int = 35
    """Q, tokens of a question with its marks and padding."""
    answers: int = 10
    """A, the most different answers to a question."""
    answer_length: int = 12
    """T, tokens of an answer with its marks and padding."""
    label_smoothing: float = 0.1
    vocabulary_chunk: int = 1024
    """Tokens whose logits are in memory at a time."""

    def __post_init__(self):
        self.model.check_lengths(length=self.length, answer_length=self.answer_length)
        check_writing(self.label_smoothing, self.vocabulary_chunk)
        if self.answers < 1:
            raise InputError(f"system.answers is {self.answers}; it must be at least 1")

    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images, questions and answers `[CLS] ... [SEP]`, and the answers' weights, 0 where there is none."""
        return {
            **self.model.inputs(question=self.length),
            "answers": jax.ShapeDtypeStruct((self.answers, self.answer_length), jnp.int32),
            "answer_weights": jax.ShapeDtypeStruct((self.answers,), jnp.float32),
        }

    def init(self, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh boxed parameters; carried: statistics of the image encoder where it has some."""
        keys = jax.random.split(rng, 3)
        image, carried = self.model.init_image(keys[0], batch["image"])
        params = {
            "image": image,
            "text": self.model.init_encoder(keys[1], batch["question"]),
            "decoder": self.model.init_decoder(keys[2], batch["question"], self.model.text.width),
        }
        return params, carried

    def counts(self, batch: Batch) -> Float[Array, ""]:
        """How many questions there are."""
        return jnp.asarray(len(batch["question"]), jnp.float32)

    def share(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray, counts: Float[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """What a microbatch adds: of every question the weighted sum of its answers' losses, over `counts`."""
        keys = jax.random.split(rng, 3)
        seen, carried = self.model.see(params["image"], carried, batch["image"], keys[0])
        question, answers = batch["question"], _flat(batch["answers"])
        states = self._states(params, question, seen.tokens, keys[1])
        text, weights = begun(answers, self.model.decode), batch["answer_weights"].reshape(-1, 1)
        loss, _, sums = self.model.writing_loss(
            params["decoder"],
            text,
            self.model.next_tokens(text),
            self._for_each(states, self.answers),
            keys[2],
            chunk=self.vocabulary_chunk,
            label_smoothing=self.label_smoothing,
            weights=jnp.broadcast_to(weights, text.shape),
            context_segments=self._for_each(self.model.segments(question), self.answers),
        )
        return loss / counts, ({"nll": sums["nll"] / counts}, carried)

    def loss(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """The mean over the questions of the batch."""
        return self.share(params, carried, batch, rng, self.counts(batch))

    def constrain(self, params: Params) -> Params:
        """The parameters as they are."""
        return params

    def parts(self) -> Mapping[str, str]:
        """Part -> pattern over parameter paths."""
        return {"image encoder": "image/.*", "text encoder": "text/.*", "text decoder": "decoder/.*"}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises `InputError` where the tokenizer's ids are not those of the model."""
        self.model.check_tokenizer(tokenizer)

    def locked(self) -> tuple[str, ...]:
        """Everything trains."""
        return ()

    def flops_per_example(self) -> Mapping[str, float]:
        """Forward FLOPs by part, with all places for answers."""
        decoder = self.decoder_module().config
        return {
            "image encoder": self.model.image.flops(),
            "text encoder": self.model.encoder_config().flops(self.length, self.model.image.tokens),
            "text decoder": self.answers * decoder.flops(self.answer_length, self.length),
        }

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """None: a fine-tuning begins with pretrained weights."""
        return None

    # What the evaluations use: Writes.

    def decoder_module(self) -> BERTModule:
        """What writes."""
        return self.model.decoder_module(self.model.text.width)

    def decoder_params(self, params: Params) -> Params:
        """Its parameters."""
        return {"params": params["decoder"]}

    def prompted(self, params: Params, carried: Carried, batch: Batch) -> Prompted:
        """[DEC], beside the states of the prompt, which is the question with its marks, [ENC] first."""
        valid = batch["prompt_valid"]
        seen, _ = self.model.see(params["image"], carried, batch["image"])
        places = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)  # the padding is at the left
        states = self.model.ground(params["text"], batch["prompt"], seen.tokens, segments=valid, positions=places)
        start = jnp.full((len(valid), 1), self.model.decode, jnp.int32)
        return Prompted(start, jnp.ones_like(start), states, valid)

    def _states(self, params: Params, question: Int[Array, "B Q"], image_tokens: Array, rng: Any = None) -> Array:
        return self.model.ground(params["text"], begun(question, self.model.encode), image_tokens, rng)

    def _for_each(self, x: Float[Array, "B *rest"], times: int) -> Float[Array, "B*times *rest"]:
        """Every row so many times, one after the other, so that none leaves its device."""
        return _flat(per_row(jnp.broadcast_to(x[:, None], (len(x), times, *x.shape[1:]))))


def _flat(x: Float[Array, "B n *rest"]) -> Float[Array, "B*n *rest"]:
    return x.reshape(-1, *x.shape[2:])
