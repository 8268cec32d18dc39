"""BLIP's model without its losses: an image encoder, and one BERT used in three ways (Li et al. 2022, section 3.1).

    image                                 -> image encoder            -> tokens [B, N, C]
    [CLS] text                            -> text encoder             -> tokens [B, T, D]
    [ENC] text, attending to image tokens -> image-grounded encoder   -> tokens [B, T, D]
    [DEC] text, attending to image tokens -> image-grounded decoder   -> tokens [B, T, D] -> logits

The uses differ in whether a token sees those after it, in whether there is cross-attention, and in the first token. The
same parameters serve any of them (vlmax/models/decoders/bert.py); which are shared by which is said by the systems,
which hold the parameters and pass subtrees of them to the functions here.

Texts come as the tokenizer makes them, `[CLS] ... [SEP]` and padding at the right; `[CLS]` is replaced here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from vlmax.errors import InputError
from vlmax.models.decoders.bert import BERT, BERTModule, blip_text
from vlmax.models.encoders.output import EncoderOutput
from vlmax.models.encoders.resnet import ModifiedResNet, ResNet
from vlmax.models.encoders.vit import ViT, blip_vit_b16
from vlmax.models.layers.axes import constrain, mesh_axes
from vlmax.models.pixels import OPENAI_MEAN, OPENAI_STD, Colour, normalised
from vlmax.objectives.language import next_token_loss
from vlmax.objectives.language_device import IGNORED, Axes
from vlmax.systems.system import Carried, Params

DECODE, ENCODE = "[DEC]", "[ENC]"
"""The tokens that BLIP adds to BERT's vocabulary: a text that is written begins so, and one read beside an image."""


@dataclasses.dataclass(frozen=True)
class MED:
    """The multimodal mixture of encoder and decoder; the defaults are the paper's base model.

    Raises:
      InputError: a text model that is causal, has a pooler or names a context, marks outside the vocabulary.
    """

    image: ViT | ResNet | ModifiedResNet = blip_vit_b16()
    text: BERT = blip_text()
    """Sizes of the BERT; whether it is causal and what it attends to is said by its uses."""
    pad: int = 0
    """The token that fills a text."""
    decode: int = 30_522
    """The token [DEC], with which a text to be written begins."""
    encode: int = 30_523
    """The token [ENC], with which a text begins that is read beside an image."""
    mean: Colour = OPENAI_MEAN
    """Of the pixels in [0, 1], by colour."""
    std: Colour = OPENAI_STD
    dtype: str = "bfloat16"
    """What is computed in; parameters, features and losses are float32."""

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"system.model.dtype is {self.dtype!r}; it must be float32 or bfloat16")
        if self.text.causal or self.text.pooler or self.text.cross_width is not None:
            raise InputError(
                f"system.model.text: causal is {self.text.causal}, pooler {self.text.pooler} and cross_width "
                f"{self.text.cross_width}; leave them False, False and None, as BLIP sets them for each of its uses"
            )
        marks = {"pad": self.pad, "decode": self.decode, "encode": self.encode}
        for name, token in marks.items():
            if not 0 <= token < self.text.vocab:
                raise InputError(
                    f"system.model.{name} is the token {token}, and system.model.text.vocab is {self.text.vocab}; give "
                    f"the id of the tokenizer's mark, or a larger vocabulary"
                )
        if len(set(marks.values())) < len(marks):
            raise InputError(f"system.model: pad, decode and encode must be three different tokens, not {marks}")

    # Fresh parameters, boxed with their logical axes.

    def init_image(self, rng: PRNGKeyArray, image: UInt8[Array, "B h w 3"]) -> tuple[Params, Carried]:
        """Parameters of the image encoder, and its statistics as `carried` has them."""
        variables = dict(self._image_module().init(rng, self._pixels(image), deterministic=True))
        params = variables.pop("params")
        return params, {collection: {"image": tree} for collection, tree in variables.items()}

    def init_encoder(self, rng: PRNGKeyArray, text: Int[Array, "B T"]) -> Params:
        """Parameters of the image-grounded encoder, which are those of the text encoder, too."""
        return self.encoder_module().init(rng, text, context=self._nothing(text, self.image.width))["params"]

    def init_decoder(self, rng: PRNGKeyArray, text: Int[Array, "B T"], width: int | None = None) -> Params:
        """Parameters of a decoder that attends to a context of that width; None: the image's tokens."""
        context = self._nothing(text, width or self.image.width)
        return self.decoder_module(width).init(rng, text, context=context)["params"]

    # The uses. With an rng as in training, without one as in evaluation.

    def see(
        self, params: Params, carried: Carried, image: UInt8[Array, "B h w 3"], rng: PRNGKeyArray | None = None
    ) -> tuple[EncoderOutput, Carried]:
        """What the image encoder makes of images, and its statistics after it as `carried` has them."""
        statistics = {name: tree["image"] for name, tree in carried.items() if name == "batch_stats"}
        apply = functools.partial(self._image_module().apply, {"params": params, **statistics}, self._pixels(image))
        if rng is None:
            return apply(deterministic=True), {}
        seen, changed = apply(deterministic=False, rngs={"dropout": rng}, mutable=list(statistics))
        return seen, {name: {"image": tree} for name, tree in changed.items()}

    def read(self, params: Params, text: Int[Array, "B T"], rng: PRNGKeyArray | None = None) -> Float[Array, "B T D"]:
        """The text encoder: a text by itself."""
        module = dataclasses.replace(self.encoder_config(), cross_width=None).build(jnp.dtype(self.dtype))
        return self._apply(module, params, text, rng, segments=self.segments(text), positions=_places(text))

    def ground(
        self,
        params: Params,
        text: Int[Array, "B T"],
        image_tokens: Float[Array, "B N C"],
        rng: PRNGKeyArray | None = None,
        **options: Any,
    ) -> Float[Array, "B T D"]:
        """The image-grounded encoder. `segments` and `positions` are those of one text padded at the right."""
        options = {"segments": self.segments(text), "positions": _places(text), **options}
        return self._apply(self.encoder_module(), params, text, rng, context=image_tokens, **options)

    def writing_loss(
        self,
        params: Params,
        text: Int[Array, "B T"],
        labels: Int[Array, "B T"],
        context: Float[Array, "B N C"],
        rng: PRNGKeyArray | None,
        *,
        chunk: int,
        label_smoothing: float,
        weights: Float[Array, "B T"] | None = None,
        context_segments: Int[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, ""], Int[Array, ""], dict[str, Float[Array, ""]]]:
        """The image-grounded decoder's cross-entropy; see `next_token_loss` for what is given and returned."""
        module, variables = self.decoder_module(context.shape[-1]), {"params": params}
        options = {"segments": self.segments(text), "positions": _places(text), "context_segments": context_segments}
        tokens = self._apply(module, params, text, rng, context=context, **options)
        return next_token_loss(
            module.apply(variables, tokens, method="head_inputs"),
            module.apply(variables, method="head"),
            labels,
            vocab=self.text.vocab,
            chunk=chunk,
            bias=module.apply(variables, method="head_bias"),
            weights=weights,
            label_smoothing=label_smoothing,
            axes=Axes(*(mesh_axes(name) for name in ("batch", "tokens", "vocab", "embed"))),
        )

    # Parts.

    def encoder_config(self) -> BERT:
        """The image-grounded encoder's."""
        return dataclasses.replace(self.text, cross_width=self.image.width, predicts=False)

    def encoder_module(self) -> BERTModule:
        """The image-grounded encoder."""
        return self.encoder_config().build(jnp.dtype(self.dtype))

    def decoder_module(self, width: int | None = None) -> BERTModule:
        """A decoder that attends to a context of that width; None: the image's tokens."""
        uses: dict[str, Any] = {"causal": True, "cross_width": width or self.image.width, "predicts": True}
        return dataclasses.replace(self.text, **uses).build(jnp.dtype(self.dtype))

    def segments(self, text: Int[Array, "B T"]) -> Int[Array, "B T"]:
        """1 for what belongs to a text, 0 for its padding."""
        return (text != self.pad).astype(jnp.int32)

    def next_tokens(self, text: Int[Array, "B T"]) -> Int[Array, "B T"]:
        """What each place of a text predicts, IGNORED where nothing follows."""
        after = jnp.pad(text[:, 1:], ((0, 0), (0, 1)), constant_values=self.pad)
        return jnp.where(after == self.pad, IGNORED, after)

    def inputs(self, **lengths: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Images, and texts of these lengths by the names of their features."""
        height, width = self.image.image_size
        texts = {name: jax.ShapeDtypeStruct((length,), jnp.int32) for name, length in lengths.items()}
        return {"image": jax.ShapeDtypeStruct((height, width, 3), jnp.uint8), **texts}

    def check_lengths(self, **lengths: int) -> None:
        """Raises `InputError` where a text is longer than the positions, or has no room for its marks."""
        for name, length in lengths.items():
            if not 2 <= length <= self.text.context:
                raise InputError(
                    f"system.{name} is {length}; it must be 2 to {self.text.context}, which is "
                    "system.model.text.context"
                )

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises `InputError` where the tokenizer's ids are not those of the model."""
        if tokenizer.vocab_size > self.text.vocab:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} ids and the text model embeds {self.text.vocab}; set "
                f"system.model.text.vocab to at least {tokenizer.vocab_size}, or take the tokenizer that belongs to it"
            )
        if tokenizer.bos is None or tokenizer.eos is None:
            raise InputError(
                "the tokenizer lacks a mark of the beginning or of the end, and BLIP's texts have both ([CLS] and "
                "[SEP]); take another in data.preprocess.tokenizer"
            )
        if tokenizer.pad_id != self.pad:
            raise InputError(
                f"the tokenizer fills texts with {tokenizer.pad_id}, and system.model.pad is {self.pad}; make the two "
                "agree"
            )
        for field, mark, token in (("decode", DECODE, self.decode), ("encode", ENCODE, self.encode)):
            if tokenizer.encode(mark) != [token]:
                raise InputError(
                    f"system.model.{field} is {token}, and the tokenizer makes {tokenizer.encode(mark)} of {mark}; set "
                    f"it to the tokenizer's, which must know {mark}: WordPiece(added=({DECODE!r}, {ENCODE!r}))"
                )

    def _image_module(self) -> Any:
        return self.image.build(jnp.dtype(self.dtype))

    def _pixels(self, image: UInt8[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        return normalised(image, self.mean, self.std, self.dtype)

    def _nothing(self, text: Int[Array, "B T"], width: int) -> Float[Array, "B 1 C"]:
        return jnp.zeros((len(text), 1, width), self.dtype)

    def _apply(self, module: BERTModule, params: Params, text: Array, rng: Any, **options: Any) -> Array:
        more = {"deterministic": True} if rng is None else {"deterministic": False, "rngs": {"dropout": rng}}
        return module.apply({"params": params}, text, **options, **more).tokens


def begun(text: Int[Array, "B T"], mark: int) -> Int[Array, "B T"]:
    """Texts padded at the right, with another first token."""
    return jnp.where(_places(text) == 0, mark, text)


def check_writing(label_smoothing: float, chunk: int) -> None:
    """Raises `InputError` where a number of the decoder's loss makes no sense."""
    if not 0 <= label_smoothing < 1 or chunk < 1:
        raise InputError(
            f"system: label_smoothing is {label_smoothing} and vocabulary_chunk {chunk}; they must be at least 0 and "
            "below 1, and at least 1"
        )


def _places(text: Int[Array, "B T"]) -> Int[Array, "1 T"]:
    return jnp.arange(text.shape[1])[None]


# Which parameters of its layers a decoder has for itself, the rest being the encoder's (Li et al. 2022, table 3).

ATTENTION = ("attention", "attention_norm")
CROSS_ATTENTION = ("cross_attention", "cross_attention_norm")
HEAD = ("head_dense", "head_norm", "output_bias")
Tied = Literal["all", "all_but_self_attention", "all_but_cross_attention", "none"]
OWN: Mapping[Tied, tuple[str, ...]] = {
    "all": (),
    "all_but_self_attention": ATTENTION,
    "all_but_cross_attention": CROSS_ATTENTION,
}


def own_of(decoder: Params, tied: Tied) -> Params:
    """What a decoder does not share with the encoder: its head, and of its layers what `tied` says."""
    if tied == "none":
        return decoder
    own = {name: decoder[name] for name in HEAD}
    layers = decoder["transformer"]["layers"]
    mine = {name: layers[name] for name in OWN[tied]}
    return {**own, "transformer": {"layers": mine}} if mine else own


def with_shared(own: Params, encoder: Params) -> Params:
    """The whole decoder: what is its own, and the encoder's parameters for the rest."""
    layers = {**encoder["transformer"]["layers"], **own.get("transformer", {}).get("layers", {})}
    return {**encoder, **own, "transformer": {"layers": layers}}


def alone(encoder: Params) -> Params:
    """What an image-grounded encoder's parameters hold for reading a text by itself."""
    layers = {name: tree for name, tree in encoder["transformer"]["layers"].items() if name not in CROSS_ATTENTION}
    return {**encoder, "transformer": {"layers": layers}}


def per_row(x: Float[Array, "B *rest"]) -> Float[Array, "B *rest"]:
    """`x` with its rows over the devices of the batch and whole otherwise."""
    return constrain(x, "batch", *[None] * (x.ndim - 1))
