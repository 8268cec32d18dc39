"""BLIP fine-tuned to judge statements about two images, NLVR2 (Li et al. 2022, section 5.4 and figure 5c).

Every layer of the text encoder attends to each image with a cross-attention of its own, and merges the two results: the
first half of the layers takes their mean, the other half a learned linear layer over both. A classifier on the first
token says whether the statement is true.

Both cross-attentions begin as pretraining's one: `text/layers/cross_attention_0` and `..._1` take what it has as
`text/transformer/layers/cross_attention`. One loop runs over all layers; the mean is a merging whose matrix is fixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from vlmax.models.decoders.bert import BERT
from vlmax.models.decoders.vocabulary import Vocabulary
from vlmax.models.layers.attention import Attention, Mask
from vlmax.models.layers.axes import constrain, parameter
from vlmax.models.layers.dense import Dense, product
from vlmax.models.layers.embeddings import Positions
from vlmax.models.layers.mlp import MLP
from vlmax.models.layers.norms import LayerNorm
from vlmax.models.layers.transformer import REMAT_POLICIES
from vlmax.systems.blip_model import MED, begun
from vlmax.systems.system import Batch, Carried, Metrics, Params

Merging = tuple[Float[Array, "2*D D"], Float[Array, " D"]]
_normal, _torch = nn.initializers.normal(0.02), nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class BLIPNLVR2:
    """The system.

    Raises:
      InputError: texts that the model has no room for.
    """

    model: MED = MED()
    """Image encoder and BERT."""
    length: int = 50
    """T, tokens of a statement with its marks and padding."""

    def __post_init__(self):
        self.model.check_lengths(length=self.length)

    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Two images, a statement `[CLS] ... [SEP]`, and `label`: 1 where it is true."""
        found = self.model.inputs(text=self.length)
        return {**found, "second_image": found["image"], "label": jax.ShapeDtypeStruct((), jnp.int32)}

    def init(self, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh boxed parameters; carried: statistics of the image encoder where it has some."""
        keys = jax.random.split(rng, 3)
        image, carried = self.model.init_image(keys[0], batch["image"])
        text, width = batch["text"], self.model.image.width
        contexts = [jnp.zeros((len(text), 1, width), self.model.dtype)] * 2
        encoder = self._encoder().init(keys[1], text, contexts, segments=self.model.segments(text))["params"]
        states = jnp.zeros((1, self.model.text.width))
        return {"image": image, "text": encoder, "classifier": _Classifier().init(keys[2], states)["params"]}, carried

    def counts(self, batch: Batch) -> Float[Array, ""]:
        """How many statements there are."""
        return jnp.asarray(len(batch["label"]), jnp.float32)

    def share(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray, counts: Float[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """What a microbatch adds to the mean over `counts` statements."""
        logits, carried = self._judge(params, carried, batch, rng)
        log_p, true = jax.nn.log_softmax(logits), batch["label"] == 1
        losses = -jnp.where(true, log_p[:, 1], log_p[:, 0])
        right = (logits[:, 1] > logits[:, 0]) == true
        return losses.sum() / counts, ({"accuracy": jnp.sum(right) / counts}, carried)

    def loss(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """The mean over the statements of the batch."""
        return self.share(params, carried, batch, rng, self.counts(batch))

    def constrain(self, params: Params) -> Params:
        """The parameters as they are."""
        return params

    def parts(self) -> Mapping[str, str]:
        """Part -> pattern over parameter paths."""
        return {"image encoder": "image/.*", "text encoder": "text/.*", "classifier": "classifier/.*"}

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises `InputError` where the tokenizer's ids are not those of the model."""
        self.model.check_tokenizer(tokenizer)

    def locked(self) -> tuple[str, ...]:
        """Everything trains."""
        return ()

    def flops_per_example(self) -> Mapping[str, float]:
        """Forward FLOPs by part."""
        encoder, tokens = self.model.encoder_config(), self.model.image.tokens
        text, width = dataclasses.replace(encoder, cross_width=None).flops(self.length), encoder.width
        merging = encoder.depth * self.length * 4 * width**2
        return {
            "image encoder": 2 * self.model.image.flops(),
            "text encoder": 2 * encoder.flops(self.length, tokens) - text + merging,
            "classifier": 2 * width * (width + 2),
        }

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """None: a fine-tuning begins with pretrained weights."""
        return None

    def says_true(self, params: Params, carried: Carried, batch: Batch) -> Bool[Array, " B"]:
        """Whether each statement is held to be true, as in evaluation."""
        logits, _ = self._judge(params, carried, batch, None)
        return logits[:, 1] > logits[:, 0]

    def _judge(self, params: Params, carried: Carried, batch: Batch, rng: Any) -> tuple[Float[Array, "B 2"], Carried]:
        """Logits of false and true."""
        text = begun(batch["text"], self.model.encode)
        both = jnp.stack([batch["image"], batch["second_image"]], axis=1)  # side by side: no row leaves its device
        keys = [None] * 2 if rng is None else jax.random.split(rng)
        seen, carried = self.model.see(params["image"], carried, both.reshape(-1, *both.shape[2:]), keys[0])
        tokens = seen.tokens.reshape(*both.shape[:2], *seen.tokens.shape[1:])
        options: dict[str, Any] = {"segments": self.model.segments(text), "deterministic": rng is None}
        if rng is not None:
            options["rngs"] = {"dropout": keys[1]}
        states = self._encoder().apply({"params": params["text"]}, text, [tokens[:, 0], tokens[:, 1]], **options)
        return _Classifier().apply({"params": params["classifier"]}, states[:, 0].astype(jnp.float32)), carried

    def _encoder(self) -> TwoImageEncoder:
        return TwoImageEncoder(self.model.encoder_config(), jnp.dtype(self.model.dtype))


class _Classifier(nn.Module):
    """Two logits from the first token's state."""

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B 2"]:
        hidden = Dense(x.shape[-1:], ("embed",), ("projection",), _torch, name="hidden")(x)
        return Dense((2,), ("embed",), ("classes",), _torch, name="out")(nn.relu(hidden))


class TwoImageEncoder(nn.Module):
    """BERT with two cross-attentions a layer; its other parameters are named as in `BERTModule`."""

    config: BERT
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        text: Int[Array, "B T"],
        contexts: list[Float[Array, "B N C"]],
        *,
        segments: Int[Array, "B T"],
        deterministic: bool = True,
    ) -> Float[Array, "B T D"]:
        """The states of a text that attends to two images' tokens."""
        config = self.config
        width, learned = config.width, config.depth - config.depth // 2
        vocabulary = Vocabulary(
            config.vocab, config.vocab_multiple, width, True, _normal, self.dtype, name="vocabulary"
        )
        positions = Positions(config.context, width, _normal, self.dtype, name="positions")
        x = vocabulary.embed(text) + positions.at(jnp.arange(text.shape[1])[None])
        x = LayerNorm(config.norm_epsilon, self.dtype, name="embedding_norm")(x)
        x = constrain(nn.Dropout(config.dropout)(x, deterministic=deterministic), "batch", "tokens", "act_embed")

        kernel = parameter(self, "merge_kernel", _merging_init, (learned, 2 * width, width), ("layers", None, "embed"))
        bias = parameter(self, "merge_bias", nn.initializers.zeros, (learned, width), ("layers", "embed"))
        mean = jnp.tile(0.5 * jnp.eye(width), (config.depth - learned, 2, 1))
        merging = jnp.concatenate([mean, kernel]), jnp.pad(bias, ((config.depth - learned, 0), (0, 0)))
        layer = TwoImageLayer
        if config.remat != "none":
            layer = nn.remat(TwoImageLayer, policy=REMAT_POLICIES[config.remat], prevent_cse=config.unroll > 1)
        stack = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.depth,
            unroll=config.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        mask = Mask(query_segments=segments, key_segments=segments)
        return stack(config, self.dtype, deterministic, name="layers")(x, merging, contexts, mask)[0]


class TwoImageLayer(nn.Module):
    """Self-attention, a cross-attention to each image and their merging, MLP; each with its norm after the sum."""

    config: BERT
    dtype: DTypeLike
    deterministic: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], merging: Merging, contexts: list[Float[Array, "B N C"]], mask: Mask
    ) -> tuple[Float[Array, "B T D"], None]:
        """The residual stream after the layer."""
        config = self.config
        head = config.width // config.heads

        def attention(name: str) -> Attention:
            return Attention(config.heads, config.heads, head, _normal, _normal, dtype=self.dtype, name=name)

        def add(x: Array, y: Array, name: str) -> Array:
            y = nn.Dropout(config.dropout)(y, deterministic=self.deterministic)
            x = LayerNorm(config.norm_epsilon, self.dtype, name=name)(x + y)
            return constrain(x, "batch", "tokens", "act_embed")

        x = add(x, attention("attention")(x, None, mask), "attention_norm")
        looked = [attention(f"cross_attention_{i}")(x, context) for i, context in enumerate(contexts)]
        kernel, bias = (part.astype(self.dtype) for part in merging)
        x = add(x, product(jnp.concatenate(looked, axis=-1), kernel) + bias, "cross_attention_norm")
        mlp = MLP(config.mlp, config.activation, _normal, _normal, dtype=self.dtype, name="mlp")
        return add(x, mlp(x), "mlp_norm"), None


def _merging_init(rng: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "L 2*D D"]:
    """As a linear layer of BERT."""
    return 0.02 * jax.random.normal(rng, shape, dtype)
