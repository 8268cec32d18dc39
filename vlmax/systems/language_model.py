"""A language model alone: next-token training on packed documents.

    tokens, segments -> decoder            -> [B, T, D] -> cross-entropy with the labels, over the vocabulary in chunks
    inputs, targets  -> encoder -> decoder -> [B, T, D] /

A decoder-only model (`Causal`: LLaMA and its kin, GPT-2, OPT) predicts each next token of a text; an encoder-decoder
(`TextToText`: T5) reads the first part of a text and predicts the second (vlmax/data/texts.py makes the features of
both). Documents that share a row do not see each other, and the positions of each begin at 0.

The loss is the mean over all learned tokens of the global batch, however unequally rows and microbatches are filled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vlmax.errors import InputError
from vlmax.models.decoders.gpt2 import GPT2
from vlmax.models.decoders.llama import LLaMA
from vlmax.models.decoders.opt import OPT
from vlmax.models.decoders.t5 import T5
from vlmax.models.layers.axes import mesh_axes
from vlmax.models.lora import LoRA
from vlmax.models.projections import noted
from vlmax.objectives.language import next_token_loss
from vlmax.objectives.language_device import IGNORED, Axes
from vlmax.objectives.token_scores import token_scores
from vlmax.systems.system import Batch, Carried, Metrics, Params

Call = tuple[tuple[Array, ...], dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class Causal:
    """Rows of packed texts, each token predicted from those before it in its document.

    Raises:
      InputError: rows longer than the decoder's context.
    """

    decoder: LLaMA | GPT2 | OPT
    length: int = 2048
    """T, tokens of a row."""

    def __post_init__(self):
        _check_length("length", self.length, self.decoder.context)

    def inputs(self) -> Mapping[str, int]:
        """The features, all int32, and their lengths."""
        return dict.fromkeys(("tokens", "labels", "segments"), self.length)

    def call(self, batch: Batch) -> Call:
        """How the decoder is called on a batch."""
        segments = batch["segments"]
        return (batch["tokens"],), {"segments": segments, "positions": positions_in_documents(segments)}

    def flops(self) -> float:
        """Forward FLOPs of one row."""
        return self.decoder.flops(self.length)

    def initial_loss(self) -> float | None:
        """Fresh logits have variance D x 0.02^2; None where the head is tied, which makes a token's own logit high."""
        if not isinstance(self.decoder, LLaMA) or self.decoder.tied:
            return None
        return math.log(self.decoder.vocab) + self.decoder.width * 0.02**2 / 2


@dataclasses.dataclass(frozen=True)
class TextToText:
    """Rows of packed pairs: an encoder reads the inputs, a decoder predicts the targets.

    Raises:
      InputError: rows longer than the context.
    """

    decoder: T5
    """Encoder and decoder."""
    read: int = 512
    """N, tokens of a row of inputs."""
    length: int = 512
    """T, tokens of a row of targets."""

    def __post_init__(self):
        _check_length("read", self.read, self.decoder.context)
        _check_length("length", self.length, self.decoder.context)

    def inputs(self) -> Mapping[str, int]:
        """The features, all int32, and their lengths."""
        read = dict.fromkeys(("inputs", "input_segments"), self.read)
        return read | dict.fromkeys(("targets", "labels", "target_segments"), self.length)

    def call(self, batch: Batch) -> Call:
        """How encoder and decoder are called on a batch."""
        options = {"segments": batch["input_segments"], "target_segments": batch["target_segments"]}
        return (batch["inputs"], batch["targets"]), options

    def flops(self) -> float:
        """Forward FLOPs of one row."""
        return self.decoder.flops(self.length, self.read)

    def initial_loss(self) -> float | None:
        """Fresh logits have variance 1; None where the head is tied."""
        return None if self.decoder.tied else math.log(self.decoder.vocab) + 0.5


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """The system; its parameters are those of the decoder itself.

    Raises:
      InputError: a number outside its bounds.
    """

    text: Causal | TextToText
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    """Factor of log(Z)^2, which keeps logits from drifting (PaLM: 1e-4)."""
    chunk: int = 1024
    """Tokens whose logits are in memory at a time; see `next_token_loss`."""
    dtype: str = "bfloat16"
    """What the decoder computes in; parameters and loss are float32."""
    lora: LoRA | None = None
    """Adapters on some projections; nothing else trains then. The rest starts from a checkpoint: `init` of an
    experiment."""

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"system.dtype is {self.dtype!r}; it must be float32 or bfloat16")
        if not 0 <= self.label_smoothing < 1 or not 0 <= self.z_loss < math.inf or self.chunk < 1:
            raise InputError(
                f"system: label_smoothing is {self.label_smoothing}, z_loss {self.z_loss} and chunk {self.chunk}; they "
                "must be at least 0 and below 1, at least 0, and at least 1"
            )

    # What the trainer and the planner see.

    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Rows of packed documents; see `Causal` and `TextToText`."""
        return {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name, size in self.text.inputs().items()}

    def init(self, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh boxed parameters of the decoder, with its adapters; nothing is carried."""
        inputs, options = self.text.call(batch)
        with noted() as projections:
            params = self._module().init(rng, *inputs, **options)["params"]
        return (params if self.lora is None else self.lora.add(jax.random.fold_in(rng, 1), params, projections)), {}

    def counts(self, batch: Batch) -> Float[Array, ""]:
        """How many tokens of the batch are learned; at least 1."""
        return jnp.maximum(jnp.sum(batch["labels"] != IGNORED), 1).astype(jnp.float32)

    def share(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray, counts: Float[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """What a microbatch adds to the mean over `counts` tokens.

        The metrics are `nll` (the loss without smoothing and z-loss), `accuracy` and `tokens`, how many are learned.
        """
        hidden, head = self._read(params, batch, deterministic=False, rngs={"dropout": rng})
        loss, tokens, sums = next_token_loss(
            hidden,
            head,
            batch["labels"],
            vocab=self.text.decoder.vocab,
            chunk=self.chunk,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            axes=Axes(*(mesh_axes(name) for name in ("batch", "tokens", "vocab", "embed"))),
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
        return {"language model": ".*"}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises InputError where ids pass the vocabulary."""
        if tokenizer.vocab_size > self.text.decoder.vocab:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the decoder {self.text.decoder.vocab}; set "
                f"system.text.decoder.vocab to at least {tokenizer.vocab_size}, or take the tokenizer that belongs to "
                "the model"
            )

    def locked(self) -> tuple[str, ...]:
        """With adapters, all that is none."""
        return () if self.lora is None else (LoRA.BASE,)

    def flops_per_example(self) -> Mapping[str, float]:
        """Forward FLOPs of one row."""
        return {"language model": self.text.flops()}

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """See `Causal` and `TextToText`; z-loss adds its factor times the square of ln V."""
        loss = self.text.initial_loss()
        return None if loss is None else loss + self.z_loss * math.log(self.text.decoder.vocab) ** 2

    # What the evaluations use.

    def score(self, params: Params, carried: Carried, batch: Batch) -> dict[str, Float[Array, " B"]]:
        """Sums over the learned tokens of every row: `nll`, `right` and `tokens`."""
        hidden, head = self._read(params, batch, deterministic=True)
        labels = batch["labels"]
        places = max(self.chunk // len(labels), 1)
        nll, right = token_scores(hidden, head, labels, vocab=self.text.decoder.vocab, places=places)
        sums = {"nll": nll, "right": right, "tokens": labels != IGNORED}
        return {name: jnp.sum(each, axis=1, dtype=jnp.float32) for name, each in sums.items()}

    def _module(self):
        return self.text.decoder.build(jnp.dtype(self.dtype))

    def _read(self, params: Params, batch: Batch, **options: Any) -> tuple[Float[Array, "B T D"], Float[Array, "D V"]]:
        """The decoder's tokens after the final norm, and the matrix of the logits."""
        inputs, named = self.text.call(batch)
        module = self._module()
        out = module.apply({"params": params}, *inputs, **named, **options)
        return out.tokens, module.apply({"params": params}, method="head")


def positions_in_documents(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """0, 1, ... from the first token of each document on; documents lie in one piece."""
    places = jnp.arange(segments.shape[1])
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return places - jax.lax.cummax(jnp.where(begins, places, 0), axis=1)


def _check_length(field: str, length: int, context: int) -> None:
    """Raises `InputError` where a row is longer than the context, or holds nothing."""
    if not 1 <= length <= context:
        raise InputError(
            f"system.text.{field} is {length}; it must be 1 to {context}, which is system.text.decoder.context"
        )
