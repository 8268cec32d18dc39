r"""A language model that reads images: their tokens stand among the embeddings of its input.

    image -> encoder -> [B, N, C] -> connector -> [B, Q, .] -> projection -> [B, Q, D] \
    text  ->                                                   embedding  -> [B, T, D] -> language model -> loss

With a Q-Former as the connector and encoder and language model locked this is BLIP-2's second stage (Li et al. 2023,
section 3.2), with a decoder (OPT) or an encoder-decoder (T5), which reads image and prefix and learns to write the
suffix. A Q-Former with a text branch also reads the instruction: InstructBLIP (Dai et al. 2023, section 2.3). Without
a connector, with an MLP as the projection and the images anywhere in the text (`Placed`), it is LLaVA's model.

The loss is the mean over all learned tokens of the global batch, and that of a microbatch its share of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vlmax.errors import InputError
from vlmax.models.connectors.projection import Projection
from vlmax.models.connectors.qformer import QFormer
from vlmax.models.layers.axes import mesh_axes
from vlmax.models.pixels import OPENAI_MEAN, OPENAI_STD, Colour, normalised
from vlmax.objectives.language import next_token_loss
from vlmax.objectives.language_device import IGNORED, Axes
from vlmax.objectives.token_scores import token_scores
from vlmax.systems.image_encoding import ImageEncoder, encode_image, of_part
from vlmax.systems.image_places import Before, Placed, Row
from vlmax.systems.language_model import Causal, TextToText
from vlmax.systems.system import Batch, Carried, Metrics, Params, Prompted

Part = Literal["image", "connector", "projection", "text"]
PARTS: tuple[Part, ...] = ("image", "connector", "projection", "text")


@dataclasses.dataclass(frozen=True)
class ImagePrefix:
    """An image encoder, a connector and a language model that reads what comes out among its own embeddings.

    Raises:
      InputError: parts that do not fit each other, or a number outside its bounds.
    """

    image: ImageEncoder
    text: Causal | TextToText
    """The language model, and how long its texts are, beside the images."""
    connector: QFormer | None = QFormer(text=False, predicts=False)
    """What makes fewer tokens of an image's; None: all of them are projected."""
    projection: Projection = Projection()
    """Into the width of the language model."""
    layout: Before | Placed = Before()
    """Where a row's images stand."""
    lock: tuple[Part, ...] = ("image", "text")
    """Parts that are kept as they are: no gradient, and they run as in evaluation."""
    instruction: int | None = None
    """Tokens of the instruction that a Q-Former with a text branch reads beside the image (InstructBLIP); None: it has
    none."""
    instruction_pad: int = 0
    """The padding of these tokens, which another tokenizer makes than those of the language model: BERT's."""
    patches_only: bool = False
    """The encoder's tokens that are no patch (the class token) are left out, as in LLaVA."""
    label_smoothing: float = 0.0
    chunk: int = 1024
    """Tokens whose logits are in memory at a time; see `next_token_loss`."""
    mean: Colour = OPENAI_MEAN
    """Of the pixels in [0, 1], by colour."""
    std: Colour = OPENAI_STD
    dtype: str = "bfloat16"
    """What all parts compute in; trained parameters and the loss are float32."""

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"system.dtype is {self.dtype!r}; it must be float32 or bfloat16")
        if not 0 <= self.label_smoothing < 1 or self.chunk < 1:
            raise InputError(
                f"system: label_smoothing is {self.label_smoothing} and chunk {self.chunk}; they must be at least 0 "
                "and below 1, and at least 1"
            )
        _check_connector(self)
        missing = [part for part in self.lock if part not in self._having()]
        if missing or len(self._having()) == len(set(self.lock)):
            raise InputError(
                f"system.lock is {self.lock}, and the system has the parts {', '.join(self._having())}; name some of "
                "them, and not all, for nothing would train"
            )
        text, read = self.text, self._read_length()
        longest = self.layout.length(read, self.image_tokens_each)
        if longest > text.decoder.context:
            field = "read" if isinstance(text, TextToText) else "length"
            raise InputError(
                f"system.text.{field} is {read}, and with the tokens of its images a row has {longest}, but "
                f"system.text.decoder.context is {text.decoder.context}; lower the first"
            )

    @property
    def image_tokens_each(self) -> int:
        """Q, how many tokens of the language model's input an image is."""
        seen = self._seen_tokens()
        return seen if self.connector is None else self.connector.tokens(seen)

    # What the trainer and the planner see.

    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """See `Before` and `Placed` for images, `Causal` and `TextToText` for texts: `tokens` is called `text` here."""
        lengths = {FEATURE.get(name, name): size for name, size in self.text.inputs().items()}
        if self.instruction is not None:
            lengths["instruction"] = self.instruction
        texts = {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name, size in lengths.items()}
        return {**self.layout.inputs(self.image.image_size, self._read_length()), **texts}

    def init(self, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh boxed parameters, and the batch statistics of a ResNet as carried state."""
        keys = dict(zip(PARTS, jax.random.split(rng, len(PARTS)), strict=True))
        modules, width = self._modules(), self.image.width
        pixels = normalised(self.layout.images_of(batch)[:1], self.mean, self.std, self.dtype)
        variables = dict(modules["image"].init(keys["image"], pixels, deterministic=True))
        params = {"image": variables.pop("params")}
        if self.connector is not None:
            params["connector"] = modules["connector"].init(keys["connector"], self._zeros(width))["params"]
            width = self.connector.output_width
        params["projection"] = modules["projection"].init(keys["projection"], self._zeros(width))["params"]
        inputs, options = self.text.call({name: batch[FEATURE.get(name, name)] for name in self.text.inputs()})
        params["text"] = modules["text"].init(keys["text"], *inputs, **options)["params"]
        return params, {kind: {"image": tree} for kind, tree in variables.items()}

    def counts(self, batch: Batch) -> Float[Array, ""]:
        """How many tokens of the batch are learned; at least 1."""
        return jnp.maximum(jnp.sum(batch["labels"] != IGNORED), 1).astype(jnp.float32)

    def share(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray, counts: Float[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """What a microbatch adds to the mean over `counts` tokens.

        The metrics are `nll` (the loss without smoothing), `accuracy` and `tokens`, how many are learned.
        """
        hidden, labels, carried = self._read(params, carried, batch, rng)
        loss, tokens, sums = next_token_loss(
            hidden,
            self._language(params, method="head"),
            labels,
            vocab=self.text.decoder.vocab,
            chunk=self.chunk,
            label_smoothing=self.label_smoothing,
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
        names = {"image": "image encoder", "connector": "connector", "projection": "projection"}
        return {names.get(part, "language model"): f"{part}/.*" for part in self._having()}

    def reads(self) -> Mapping[str, tuple[str, ...]]:
        """Every part reads what those before it make."""
        parts = tuple(self.parts())
        return {part: parts[:i] for i, part in enumerate(parts)}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises InputError where ids pass the language model's vocabulary."""
        if tokenizer.vocab_size > self.text.decoder.vocab:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the language model {self.text.decoder.vocab}; set "
                f"system.text.decoder.vocab to at least {tokenizer.vocab_size}, or take the tokenizer that belongs to "
                "the model"
            )

    def check_instruction(self, tokenizer: Any) -> None:
        """Raises InputError where ids pass the Q-Former's vocabulary, or its padding is another."""
        connector = self.connector
        if self.instruction is None or connector is None:
            raise InputError("data.preprocess.instruction makes instructions that nothing reads; set it to None")
        if tokenizer.vocab_size > connector.vocab or tokenizer.pad_id != self.instruction_pad:
            raise InputError(
                f"the tokenizer of instructions has {tokenizer.vocab_size} ids, {tokenizer.pad_id} for padding, and "
                f"the Q-Former {connector.vocab}, with system.instruction_pad {self.instruction_pad}; take the "
                "tokenizer that the Q-Former was trained with, and its padding"
            )

    def locked(self) -> tuple[str, ...]:
        """The parts that are kept as they are."""
        return tuple(f"{part}/.*" for part in self.lock)

    def flops_per_example(self) -> Mapping[str, float]:
        """Forward FLOPs of one row by part."""
        images, seen, decoder = self.layout.images, self._seen_tokens(), self.text.decoder
        width, read = self.image.width, self.layout.length(self._read_length(), self.image_tokens_each)
        found = {"image encoder": images * self.image.flops()}
        if self.connector is not None:
            found["connector"] = images * self.connector.flops(seen, self.instruction or 0)
            width = self.connector.output_width
        found["projection"] = images * self.projection.flops(self.image_tokens_each, width, decoder.embed_width)
        encoded = (self.text.length, read) if isinstance(self.text, TextToText) else (read,)
        return {**found, "language model": decoder.flops(*encoded)}

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """None: the language model comes from a checkpoint."""
        return None

    # What the evaluations use.

    def score(self, params: Params, carried: Carried, batch: Batch) -> dict[str, Float[Array, " B"]]:
        """Sums over the learned tokens of every row: `nll`, `right` and `tokens`."""
        hidden, labels, _ = self._read(params, carried, batch)
        places, head = max(self.chunk // len(labels), 1), self._language(params, method="head")
        nll, right = token_scores(hidden, head, labels, vocab=self.text.decoder.vocab, places=places)
        sums = {"nll": nll, "right": right, "tokens": labels != IGNORED}
        return {name: jnp.sum(each, axis=1, dtype=jnp.float32) for name, each in sums.items()}

    def decoder_module(self) -> nn.Module:
        """The language model."""
        return self._modules()["text"]

    def decoder_params(self, params: Params) -> Params:
        """Its parameters, as its `apply` takes them."""
        return {"params": params["text"]}

    def prompted(self, params: Params, carried: Carried, batch: Batch) -> Prompted:
        """Images and prompt as embeddings, padded at the left.

        Beside `image`, `prompt` and `prompt_valid` the batch holds what the layout reads, `places` `[B, P]`, and an
        `instruction` where the connector reads one.
        """
        image, _ = self._image(params, carried, batch)
        words = self._language(params, batch["prompt"], method="embed")
        return Prompted(*self.layout.prompt(words, batch["prompt_valid"], image, batch))

    # The parts. Without an rng they run as in evaluation.

    def _modules(self) -> dict[str, Any]:
        dtype, decoder = jnp.dtype(self.dtype), self.text.decoder
        modules: dict[str, Any] = {"image": self.image.build(dtype), "text": decoder.build(dtype)}
        if self.connector is not None:
            modules["connector"] = self.connector.build(dtype)
        return {**modules, "projection": self.projection.build(decoder.embed_width, dtype)}

    def _having(self) -> tuple[Part, ...]:
        """The parts that there are."""
        return tuple(part for part in PARTS if part != "connector" or self.connector is not None)

    def _seen_tokens(self) -> int:
        """N, how many of the encoder's tokens the connector reads."""
        return self.image.tokens - (self.image.prefix_tokens if self.patches_only else 0)

    def _read_length(self) -> int:
        """Tokens of a row's text among which the images stand."""
        return self.text.read if isinstance(self.text, TextToText) else self.text.length

    def _zeros(self, width: int) -> Float[Array, "1 1 C"]:
        return jnp.zeros((1, 1, width), self.dtype)

    def _language(self, params: Params, *inputs: Array, **options: Any) -> Any:
        return self._modules()["text"].apply({"params": params["text"]}, *inputs, **options)

    def _options(self, part: Part, rng: PRNGKeyArray | None) -> dict[str, Any]:
        """How a part is called: a locked one as in evaluation."""
        if rng is None or part in self.lock:
            return {"deterministic": True}
        return {"deterministic": False, "rngs": {"dropout": jax.random.fold_in(rng, PARTS.index(part))}}

    def _image(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "B M D"], Carried]:
        """The tokens of all images of every row, one image after the other, as the language model reads them.

        No gradient is computed for locked parts that nothing trained comes before.
        """
        modules, images = self._modules(), self.layout.images_of(batch)
        pixels = normalised(images, self.mean, self.std, self.dtype)
        locked = "image" in self.lock
        x, carried = encode_image(
            self.image, params, carried, pixels, dtype=jnp.dtype(self.dtype), rng=rng, locked=locked
        )
        if self.patches_only:
            x = x[:, self.image.prefix_tokens :]
        if self.connector is not None:
            asked = () if self.instruction is None else (batch["instruction"], self._real(batch["instruction"]))
            variables = of_part("connector", params, carried)
            x = modules["connector"].apply(variables, x, *asked, **self._options("connector", rng)).queries
            locked = locked and "connector" in self.lock
            x = jax.lax.stop_gradient(x) if locked else x
        x = modules["projection"].apply(of_part("projection", params, carried), x)
        x = jax.lax.stop_gradient(x) if locked and "projection" in self.lock else x
        return x.reshape(-1, self.layout.images * x.shape[1], x.shape[2]), carried

    def _real(self, instruction: Int[Array, "B L"]) -> Int[Array, "B L"]:
        return (instruction != self.instruction_pad).astype(jnp.int32)

    def _read(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "B T D"], Int[Array, "B T"], Carried]:
        """The language model's tokens after its final norm, what each predicts, and the carried state."""
        image, carried = self._image(params, carried, batch, rng)
        names = ENCODED if isinstance(self.text, TextToText) else DECODED
        words = self._language(params, batch[names.text], method="embed")
        labels = None if names.labels is None else batch[names.labels]
        row = self.layout.row(Row(words, batch[names.segments], labels), image, batch)
        full = {name: batch[FEATURE.get(name, name)] for name in self.text.inputs() if name != "tokens"}
        full |= {names.inputs: row.x, names.segments: row.segments}
        inputs, options = self.text.call(full)
        out = self._language(params, *inputs, **options, **self._options("text", rng))
        return out.tokens, batch["labels"] if row.labels is None else row.labels, carried


@dataclasses.dataclass(frozen=True)
class Names:
    """How the text that the images stand in is called.

    Attributes:
      text: its tokens, in a batch.
      inputs: what the language model reads in their place.
      segments: of both.
      labels: what its places predict; None: nothing, for an encoder reads it.
    """

    text: str
    inputs: str
    segments: str
    labels: str | None


DECODED = Names("text", "tokens", "segments", "labels")
ENCODED = Names("inputs", "inputs", "input_segments", None)
FEATURE = {"tokens": "text"}
"""Features that a system of images calls otherwise than a language model."""


def _check_connector(system: ImagePrefix) -> None:
    """Raises InputError where the connector does not fit the image encoder, or cannot read what it is given."""
    connector = system.connector
    if connector is not None and connector.cross_width != system.image.width:
        raise InputError(
            f"system.connector.cross_width is {connector.cross_width}, and the tokens of system.image are "
            f"{system.image.width} wide; set it to {system.image.width}"
        )
    if connector is not None and connector.predicts:
        raise InputError("system.connector.predicts is True, and nothing here asks it for tokens; set it to False")
    if connector is not None and connector.text and system.instruction is None:
        raise InputError(
            "system.connector.text is True and system.instruction None, so that its text branch would read nothing; "
            "set text to False, or instruction to the longest instruction"
        )
    if system.instruction is None:
        return
    if connector is None or not connector.text or not 1 <= system.instruction <= connector.context:
        raise InputError(
            f"system.instruction is {system.instruction}; it needs system.connector with text=True, whose context, at "
            "least as long, reads it; or set it to None"
        )
    if system.layout.images > 1:
        raise InputError(
            f"system.instruction: an instruction belongs to one image, and system.layout has {system.layout.images} in "
            "a row; set images to 1 or instruction to None"
        )
