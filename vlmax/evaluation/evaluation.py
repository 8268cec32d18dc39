"""What an evaluation is given and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int32, UInt8

from vlmax.data.batches import BatchInfo
from vlmax.data.example import Preprocess
from vlmax.errors import InputError

if TYPE_CHECKING:
    from vlmax.evaluation.writing import Writer


def _nothing(info: BatchInfo) -> None:
    """Records nothing."""


def _not_kept(name: str, outputs: Sequence[Mapping[str, Any]]) -> None:
    """Keeps nothing."""


def absent(*_: object) -> Any:
    """Stands for a function that the system or its preprocess does not have."""
    raise InputError("an evaluation calls a function that the system does not have; see its method `needs`")


@dataclasses.dataclass(frozen=True)
class Context:
    """The model as it stands, and how it is fed. The same on every process."""

    mesh: Mesh
    """Batches are sharded over its `data` and `fsdp` axes."""
    embed_images: Callable[[UInt8[Array, "B height width 3"]], Float[Array, "B D"]]
    """Normalised features of a global, sharded batch of images; jitted, with the weights bound as arguments."""
    embed_texts: Callable[[Int32[Array, "B T"]], Float[Array, "B D"]]
    """Normalised features of a global, sharded batch of tokens."""
    image: Preprocess
    """The deterministic transform of evaluation; its feature `image` is used."""
    tokenize: Callable[[Sequence[str]], Int32[np.ndarray, "n T"]]
    """Texts to tokens, padded to the model's context; picklable."""
    log: Callable[[str], None] = print
    """Prints a line for the user."""
    record: Callable[[BatchInfo], object] = _nothing
    """Is given what is known beside each batch on this process, such as its damaged records."""
    workers: int = 0
    """Processes of each host that read and decode; 0: one thread of this one."""
    threads: int = 1
    """Threads in each of them."""
    score: Callable[[Mapping[str, Array]], Mapping[str, Float[Array, " B"]]] = absent
    """What a batch's texts score, row by row; see `systems.system.Scores`."""
    writer: Callable[[], Writer] = absent
    """What writes texts about images; see `systems.system.Writes`."""
    image_tokens: Callable[[UInt8[Array, "B height width 3"]], Float[Array, "B N D"]] = absent
    """What `match` needs of a batch of images; see `systems.system.Matches`."""
    match: Callable[[Float[Array, "B N D"], Int32[Array, "B T"]], Float[Array, " B"]] = absent
    """The logit that the image and the text of a row match."""
    keep: Callable[[str, Sequence[Mapping[str, Any]]], None] = _not_kept
    """Keeps what an evaluation's system wrote, JSON objects, beside the scores; is given the evaluation's name."""


@runtime_checkable
class Evaluation(Protocol):
    """A frozen configuration of one evaluation, what an experiment holds; no two of one experiment share a name."""

    if TYPE_CHECKING:  # command-line overrides narrow a field by its protocol's methods: no others at run time

        @property
        def name(self) -> str:
            """What its scores are called: `eval/<name>/<score>`."""
            ...

    def needs(self) -> type:
        """The protocol that a system must have for it (vlmax/systems/system.py)."""
        ...

    def check(self, mesh: Mesh) -> None:
        """Raises `InputError` for what would else end the run at its first evaluation, such as a missing source."""
        ...

    def run(self, context: Context) -> dict[str, float]:
        """The scores by their full names, the same on every process. All processes must call it together."""
        ...
