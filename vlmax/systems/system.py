"""The one protocol through which trainer, evaluations and planner see a system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

Params = PyTree[Array]
Carried = PyTree[Array]
Batch = Mapping[str, Array]
Metrics = Mapping[str, Float[Array, ""]]


@runtime_checkable
class System(Protocol):
    """A paper's whole model with its loss. Implementations are frozen dataclasses: configuration and functions.

    `params` is a nested dict of arrays (unboxed); its logical axes come from `init`'s boxed form.
    `carried` is what the system keeps beside its parameters: batch statistics, momentum weights, queues;
    an empty dict where there is nothing.
    """

    def inputs(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The features it reads, by name, without the batch dimension."""
        ...

    def init(self, rng: PRNGKeyArray, batch: Batch) -> tuple[Params, Carried]:
        """Fresh parameters and carried state, leaves boxed with their logical axes (`nn.LogicallyPartitioned`)."""
        ...

    def loss(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """The training loss over the global batch, its parts as metrics, and the carried state after it."""
        ...

    def constrain(self, params: Params) -> Params:
        """Projects the parameters after an optimizer step (e.g. a clamped temperature)."""
        ...

    def parts(self) -> Mapping[str, str]:
        """Part name -> pattern over parameter paths, for freezing, reporting and inspection."""
        ...

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises InputError where the ids of the data's tokenizer do not fit the system's embeddings and pooling."""
        ...

    def locked(self) -> tuple[str, ...]:
        """Patterns of parameters that the system itself keeps fixed, beside what the experiment freezes."""
        ...

    def flops_per_example(self) -> Mapping[str, float]:
        """Model FLOPs of one example's forward pass by part: matrix products only, a multiply-add as 2."""
        ...

    def expected_initial_loss(self, batch_size: int) -> float | None:
        """What the loss should be at step 0 with fresh weights, where theory says; else None."""
        ...


@runtime_checkable
class TwoPass(Protocol):
    """A system whose loss is a function of per-example features over the whole batch.

    Such a loss accumulates gradients exactly: features of every microbatch first, then the gradient of
    `objective_of` with respect to them, then each microbatch again with that gradient (GradCache).
    """

    def encode(
        self, params: Params, carried: Carried, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[PyTree[Float[Array, "B ..."]], Carried]:
        """The features of every example of a (micro)batch, leading dimension B, and the carried state after it."""
        ...

    def objective_of(
        self, params: Params, features: PyTree[Float[Array, "B ..."]], batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss over the features of the whole global batch."""
        ...


@runtime_checkable
class Additive(Protocol):
    """A system whose loss is a sum over examples, divided by what is counted over the whole global batch.

    Such a loss accumulates gradients exactly: each microbatch's share is divided by the counts of the global batch, so
    that losses, metrics and gradients add up. A mean over tokens is then the mean over all tokens, not a mean of means.
    """

    def counts(self, batch: Batch) -> PyTree[Float[Array, ""]]:
        """What the sums are divided by, e.g. the number of tokens that are learned; of the whole global batch."""
        ...

    def share(
        self,
        params: Params,
        carried: Carried,
        batch: Batch,
        rng: PRNGKeyArray,
        counts: PyTree[Float[Array, ""]],
    ) -> tuple[Float[Array, ""], tuple[Metrics, Carried]]:
        """What a (micro)batch adds to the loss and to every metric, and the carried state after it.

        `loss` is the share of the whole batch.
        """
        ...


@runtime_checkable
class Chained(Protocol):
    """A system some of whose parts read what others make, so that a frozen part may lie on a gradient's way."""

    def reads(self) -> Mapping[str, tuple[str, ...]]:
        """Part -> the parts that come before it, all of them; a part that is not named reads the batch alone."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A system that puts images and texts into one space, as zero-shot classification and retrieval need it."""

    def image_features(self, params: Params, carried: Carried, image: Array) -> Float[Array, "B E"]:
        """Unit vectors of uint8 images, as in evaluation."""
        ...

    def text_features(self, params: Params, carried: Carried, text: Array) -> Float[Array, "B E"]:
        """Unit vectors of tokens, as in evaluation."""
        ...


@runtime_checkable
class Scores(Protocol):
    """A system that says how likely the texts of its batch are to it, as perplexity needs it."""

    def score(self, params: Params, carried: Carried, batch: Batch) -> Mapping[str, Float[Array, " B"]]:
        """Sums over the learned tokens of every row, as in evaluation: `nll` in nats, `right` and `tokens`.

        A token is right where its logit is the highest; `tokens` is how many are learned.
        """
        ...


@runtime_checkable
class Instructed(Protocol):
    """A system with a part that may read the feature `instruction`, by another tokenizer than that of its texts."""

    def check_instruction(self, tokenizer: Any) -> None:
        """Raises InputError where the tokens of instructions do not fit the part that reads them."""
        ...


@runtime_checkable
class ChecksBatchSize(Protocol):
    """A system that not every batch size fits."""

    def check_batch_size(self, size: int) -> None:
        """Raises InputError where a global batch of so many examples does not fit."""
        ...


class Prompted(NamedTuple):
    """What a decoder goes on from, row by row.

    Attributes:
      inputs: tokens, or embeddings such as those of an image with its prompt.
      valid: 1 for what is read, 0 for padding, which may stand anywhere: it is moved to the left.
      context: what a decoder with cross-attention attends to, such as the tokens of an image; None for the others.
      context_valid: 1 for what of the context is seen, 0 for padding; None: all of it is.
    """

    inputs: Int[Array, "B P"] | Float[Array, "B P D"]
    valid: Int[Array, "B P"]
    context: Float[Array, "B N C"] | None = None
    context_valid: Int[Array, "B N"] | None = None


@runtime_checkable
class Writes(Protocol):
    """A system that writes texts about images, as captioning and answering questions need it."""

    def decoder_module(self) -> nn.Module:
        """What writes: one of vlmax/models/decoders, built; the same (equal) module at every call."""
        ...

    def decoder_params(self, params: Params) -> PyTree[Array]:
        """What the module's `apply` takes, e.g. `{"params": params["decoder"]}`.

        A choice of leaves, without arithmetic: it is not compiled, so that weights are not copied.
        """
        ...

    def prompted(self, params: Params, carried: Carried, batch: Batch) -> Prompted:
        """What the decoder goes on from, as in evaluation.

        Args:
          params: of the system.
          carried: beside them.
          batch: `image` uint8 `[B, height, width, 3]`; `prompt` int32 `[B, P]`, tokens with their marks, padded at the
            left; `prompt_valid` int32 `[B, P]`, 1 for tokens and 0 for padding. A prompt has at least one token.
            A system that reads `instruction` finds that, too, as `inputs` has it.
        """
        ...


@runtime_checkable
class Matches(Embeds, Protocol):
    """A system that also reads an image and a text together and says whether they match, as re-ranking needs it."""

    def image_tokens(self, params: Params, carried: Carried, image: Array) -> Float[Array, "B N D"]:
        """What `match` needs of uint8 images, as in evaluation; it is computed once for all texts of an image."""
        ...

    def match(
        self, params: Params, carried: Carried, image_tokens: Float[Array, "B N D"], text: Int[Array, "B T"]
    ) -> Float[Array, " B"]:
        """The logit of "match" of every pair, which re-ranking adds to the similarity of the features.

        `text` holds tokens as `text_features` takes them.
        """
        ...
