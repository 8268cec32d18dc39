"""BLIP-2's first stage (Li et al. 2023, section 3.1): a Q-Former learns to ask a frozen image encoder.

    image -> frozen encoder -> [B, N, C]

    contrastive (ITC)   queries read the image -> unit vectors [B, Q, E],  text alone -> of its first token [B, E]
    matching (ITM)      queries read image and text together               -> the mean of their logits
    captioning (ITG)    each token reads those before it and the queries   -> the next one

The loss is the sum of the three. An image is as similar to a text as the best of its queries. Where the paper is
silent, this is the public code (LAVIS, blip2_qformer.py), but for one thing: there, features of other devices carry no
gradient, and here the loss is that of the global batch, whatever the number of devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from vlmax.errors import InputError
from vlmax.models.connectors.qformer import QFormer, QFormerOutput
from vlmax.models.encoders.vit import eva_vit_g14
from vlmax.models.layers.axes import mesh_axes
from vlmax.models.layers.dense import Dense
from vlmax.models.layers.norms import unit
from vlmax.models.pixels import OPENAI_MEAN, OPENAI_STD, Colour, normalised
from vlmax.objectives.language import next_token_loss
from vlmax.objectives.language_device import IGNORED, Axes
from vlmax.objectives.matching import draw_negatives, matching_loss, take_rows
from vlmax.objectives.query_contrastive import query_similarity, smoothed_contrastive
from vlmax.systems.image_encoding import ImageEncoder, encode_image
from vlmax.systems.system import Batch, Carried, Metrics, Params

LOWEST_TEMPERATURE = 1e-3  # the learned temperature has no bound in the paper; it must not reach 0


@dataclasses.dataclass(frozen=True)
class BLIP2:
    """BLIP-2's first stage: a Q-Former with a text branch, on an image encoder that is frozen unless it is unlocked.

    Raises:
      InputError: parts or marks that do not fit each other, or a number outside its bounds.
    """

    image: ImageEncoder = eva_vit_g14()
    qformer: QFormer = QFormer()
    embed: int = 256
    """E, the width of the joint space."""
    length: int = 32
    """T, tokens of a text with its marks and padding."""
    pad: int = 0
    """The tokenizer's padding."""
    decode: int = 30_522
    """The token, `[DEC]`, that takes the place of a text's first where the text is written."""
    temperature: float = 0.07
    """At initialisation; learned."""
    label_smoothing: float = 0.1
    """Of the contrastive loss and of the captions."""
    lock_image: bool = True
    """The image encoder is frozen and runs as in evaluation."""
    chunk: int = 1024
    """Texts that all queries are held against at a time, and tokens whose logits are in memory at a time."""
    mean: Colour = OPENAI_MEAN
    """Of the pixels in [0, 1], by colour."""
    std: Colour = OPENAI_STD
    dtype: str = "bfloat16"
    """What encoder and Q-Former compute in; trained parameters, features and losses are float32."""

    def __post_init__(self):
        former = self.qformer
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"system.dtype is {self.dtype!r}; it must be float32 or bfloat16")
        if former.cross_width != self.image.width:
            raise InputError(
                f"system.qformer.cross_width is {former.cross_width}, and the tokens of system.image are "
                f"{self.image.width} wide; set it to {self.image.width}"
            )
        if not (former.text and former.predicts):
            raise InputError("system.qformer: the first stage reads and writes texts; set text and predicts to True")
        if not 2 <= self.length <= former.context:
            raise InputError(
                f"system.length is {self.length}; it must be 2 to {former.context}, which is system.qformer.context"
            )
        if not (0 <= self.pad < former.vocab and 0 <= self.decode < former.vocab and self.pad != self.decode):
            raise InputError(
                f"system.pad is {self.pad} and system.decode {self.decode}; they must be two tokens of the "
                f"{former.vocab} of system.qformer.vocab"
            )
        if not (self.temperature >= LOWEST_TEMPERATURE and 0 <= self.label_smoothing < 1 and self.chunk >= 1):
            raise InputError(
                f"system: temperature is {self.temperature}, label_smoothing {self.label_smoothing} and chunk "
                f"{self.chunk}; they must be at least {LOWEST_TEMPERATURE}, at least 0 and below 1, and at least 1"
            )

    # What the trainer and the planner see.

    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Images uint8 `[h, w, 3]`, text int32 `[T]` with its marks; `group` int32 is read where there is one.

        Pairs of one group belong to the same image: their texts are right for each other's image.
        """
        return {
            "image": jax.ShapeDtypeStruct((*self.image.image_size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((self.length,), jnp.int32),
        }

    def init(self, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh boxed parameters, and the batch statistics of a ResNet as carried state."""
        keys = iter(jax.random.split(rng, 5))
        variables = dict(self._encoder().init(next(keys), self._pixels(batch["image"]), deterministic=True))
        tokens = jnp.zeros((1, self.image.tokens, self.image.width), self.dtype)
        features = jnp.zeros((1, self.qformer.width), jnp.float32)
        params = {
            "image": variables.pop("params"),
            "qformer": self._former().init(next(keys), tokens)["params"],
            **{name: head.init(next(keys), features)["params"] for name, head in self._heads().items()},
            "objective": {"temperature": jnp.float32(self.temperature)},
        }
        return params, {kind: {"image": tree} for kind, tree in variables.items()}

    def loss(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """The sum of the three losses over the global batch."""
        text, group, axes = batch["text"], batch.get("group"), mesh_axes("batch")
        temperature = params["objective"]["temperature"]
        keys = iter(jax.random.split(rng, 7))
        tokens, carried = self._tokens(params, carried, batch["image"], next(keys), self.lock_image)

        found = self._ask(params, tokens, next(keys), keep=True)
        image, words = self._image_vectors(params, found), self._text_vector(params, text, next(keys))
        square = query_similarity(image, words, chunk=self.chunk, axes=axes) / temperature
        contrastive, sides = smoothed_contrastive(square, label_smoothing=self.label_smoothing, group=group)

        other_text = draw_negatives(next(keys), square, group)
        other_image = draw_negatives(next(keys), square.T, group)
        images = [tokens, take_rows(tokens, other_image.index, axes=axes), tokens]
        texts = [text, text, take_rows(text, other_text.index, axes=axes)]
        pairs = self._pair_logits(params, beside(images), beside(texts), next(keys)).reshape(len(text), 3, 2)
        matching, told = matching_loss(pairs, other_image.exists, other_text.exists)

        captioning, written = self._captioning(params, text, found, next(keys))
        parts = {"contrastive": contrastive, "matching": matching, "captioning": captioning}
        metrics = {**parts, **sides, **told, **written, "temperature": temperature}
        return sum(parts.values(), jnp.zeros(())), (metrics, carried)

    def constrain(self, params: Params) -> Params:
        """Keeps the temperature above 0."""
        temperature = jnp.maximum(params["objective"]["temperature"], LOWEST_TEMPERATURE)
        return {**params, "objective": {"temperature": temperature}}

    def parts(self) -> Mapping[str, str]:
        """Part -> pattern over parameter paths."""
        return {
            "image encoder": "image/.*",
            "Q-Former": "qformer/.*",
            "projections": "(image|text)_projection/.*",
            "matching head": "matching/.*",
            "objective": "objective/.*",
        }

    def reads(self) -> Mapping[str, tuple[str, ...]]:
        """The Q-Former reads the image encoder, and the heads the Q-Former."""
        before = ("image encoder", "Q-Former")
        return {"Q-Former": before[:1], "projections": before, "matching head": before}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises InputError where ids pass the vocabulary, or the marks are not those that the system knows."""
        if tokenizer.vocab_size > self.qformer.vocab:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the Q-Former {self.qformer.vocab}; set "
                f"system.qformer.vocab to at least {tokenizer.vocab_size}, or take the tokenizer that belongs to it"
            )
        if tokenizer.pad_id != self.pad:
            raise InputError(f"the tokenizer's padding is {tokenizer.pad_id}; set system.pad, {self.pad}, to it")
        marks = {"pad": self.pad, "bos": tokenizer.bos, "eos": tokenizer.eos, "decode": self.decode}
        if None in marks.values() or len(set(marks.values())) < len(marks):
            raise InputError(
                f"BLIP-2 needs texts with a mark of the beginning, in whose place system.decode is written, and one of "
                f"the end, and all of them different; they are {marks}: add marks to the tokenizer, or change "
                "system.decode"
            )

    def locked(self) -> tuple[str, ...]:
        """The image encoder, unless it is unlocked."""
        return ("image/.*",) if self.lock_image else ()

    def flops_per_example(self) -> Mapping[str, float]:
        """Forward FLOPs by part; the similarities are left out."""
        former, context, length = self.qformer, self.image.tokens, self.length
        alone = former.flops(context) + former.text_flops(length)
        together = 3 * former.flops(context, length)
        writing = former.text_flops(length, seen=former.queries) + former.head_flops(length)
        return {
            "image encoder": self.image.flops(),
            "Q-Former": alone + together + writing,
            "projections": 2.0 * former.width * self.embed * (former.queries + 1),
            "matching head": 2.0 * former.width * 2 * former.queries * 3,
        }

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """None: the queries are alike at first, and how similar they are to texts no theory says."""
        return None

    # What the evaluations use.

    def image_features(self, params: Params, carried: Carried, image: UInt8[Array, "B h w 3"]) -> Float[Array, "B Q E"]:
        """Unit vectors of the queries of images; the similarity with a text is that of the best query."""
        tokens, _ = self._tokens(params, carried, image)
        return self._image_vectors(params, self._ask(params, tokens))

    def text_features(self, params: Params, carried: Carried, text: Int[Array, "B T"]) -> Float[Array, "B E"]:
        """Unit vectors of texts."""
        return self._text_vector(params, text)

    def image_tokens(self, params: Params, carried: Carried, image: UInt8[Array, "B h w 3"]) -> Float[Array, "B N C"]:
        """The image encoder's tokens, which the queries read beside every text."""
        return self._tokens(params, carried, image)[0]

    def match(
        self, params: Params, carried: Carried, image_tokens: Float[Array, "B N C"], text: Int[Array, "B T"]
    ) -> Float[Array, " B"]:
        """The logit of "match" of every pair."""
        return self._pair_logits(params, image_tokens, text)[:, 1]

    def match_probability(
        self, params: Params, carried: Carried, image_tokens: Float[Array, "B N C"], text: Int[Array, "B T"]
    ) -> Float[Array, " B"]:
        """The probability that each text is one of its image's, as a filter of captions needs it."""
        return jax.nn.softmax(self._pair_logits(params, image_tokens, text))[:, 1]

    # The parts. Without an rng they run as in evaluation.

    def _encoder(self):
        return self.image.build(jnp.dtype(self.dtype))

    def _former(self):
        return self.qformer.build(jnp.dtype(self.dtype))

    def _heads(self) -> dict[str, Dense]:
        """What reads the Q-Former's outputs, in float32."""
        sizes = {"image_projection": self.embed, "text_projection": self.embed, "matching": 2}
        init = jax.nn.initializers.lecun_normal()
        return {name: Dense((size,), ("embed",), ("projection",), init) for name, size in sizes.items()}

    def _pixels(self, image: UInt8[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        return normalised(image, self.mean, self.std, self.dtype)

    def _tokens(
        self,
        params: Params,
        carried: Carried,
        image: UInt8[Array, "B h w 3"],
        rng: PRNGKeyArray | None = None,
        locked: bool = True,
    ) -> tuple[Float[Array, "B N C"], Carried]:
        options: dict[str, Any] = {"dtype": jnp.dtype(self.dtype), "rng": rng, "locked": locked}
        return encode_image(self.image, params, carried, self._pixels(image), **options)

    def _ask(
        self, params: Params, tokens: Float[Array, "B N C"], rng: PRNGKeyArray | None = None, keep: bool = False
    ) -> QFormerOutput:
        """What the queries find in an image by themselves."""
        return self._former().apply({"params": params["qformer"]}, tokens, keep=keep, **dropping(rng))

    def _image_vectors(self, params: Params, found: QFormerOutput) -> Float[Array, "B Q E"]:
        return unit(self._head("image_projection", params, found.queries))

    def _text_vector(
        self, params: Params, text: Int[Array, "B T"], rng: PRNGKeyArray | None = None
    ) -> Float[Array, "B E"]:
        """Of the first token of a text that is read by itself."""
        options = dropping(rng)
        read = self._former().apply({"params": params["qformer"]}, text, self._real(text), method="read", **options)
        return unit(self._head("text_projection", params, read[:, 0]))

    def _pair_logits(
        self,
        params: Params,
        tokens: Float[Array, "B N C"],
        text: Int[Array, "B T"],
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "B 2"]:
        """Mean over the queries, each of which has read image and text."""
        options = dropping(rng)
        found = self._former().apply({"params": params["qformer"]}, tokens, text, self._real(text), **options)
        return jnp.mean(self._head("matching", params, found.queries), axis=1)

    def _captioning(
        self, params: Params, text: Int[Array, "B T"], found: QFormerOutput, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean over all tokens but the first, each predicted from those before it and what the queries found."""
        former, variables = self._former(), {"params": params["qformer"]}
        written = jnp.asarray(text).at[:, 0].set(self.decode)
        out = former.apply(variables, written, found.kept, self._real(text), method="write", **dropping(rng))
        following = jnp.pad(text[:, 1:], ((0, 0), (0, 1)), constant_values=self.pad)
        loss, count, sums = next_token_loss(
            former.apply(variables, out, method="head_inputs"),
            former.apply(variables, method="head"),
            jnp.where(following == self.pad, IGNORED, following),
            vocab=self.qformer.vocab,
            chunk=self.chunk,
            bias=former.apply(variables, method="head_bias"),
            label_smoothing=self.label_smoothing,
            axes=Axes(*(mesh_axes(name) for name in ("batch", "tokens", "vocab", "embed"))),
        )
        count = jnp.maximum(count, 1).astype(jnp.float32)
        return loss / count, {"nll": sums["nll"] / count, "accuracy": sums["correct"] / count}

    def _head(self, name: str, params: Params, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
        return self._heads()[name].apply({"params": params[name]}, x.astype(jnp.float32))

    def _real(self, text: Int[Array, "B T"]) -> Int[Array, "B T"]:
        """1 for tokens, 0 for padding."""
        return (text != self.pad).astype(jnp.int32)


def dropping(rng: PRNGKeyArray | None) -> dict[str, Any]:
    """How a module is called in training, with an rng, and as in evaluation, without."""
    return {"deterministic": True} if rng is None else {"deterministic": False, "rngs": {"dropout": rng}}


def beside(rows: list[Array]) -> Array:
    """`[B, ...]` each -> `[n B, ...]`, the n of every row side by side, so that none changes its device."""
    return jnp.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:])
