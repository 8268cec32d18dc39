"""Texts about image files, by a system that writes: what `python -m vlmax.generate --image` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlmax.data.example import BadRecord
from vlmax.data.image_prompts import Instruction
from vlmax.data.images import ImageTransform, Squash
from vlmax.data.tokenizers import Tokenizer, TokenizerConfig
from vlmax.decoding.settings import Generation
from vlmax.errors import InputError
from vlmax.evaluation.features import batch_parts
from vlmax.evaluation.prompting import Prompting, prompt_row
from vlmax.evaluation.writing import Writer
from vlmax.interop.api import computing_in, load_beside
from vlmax.interop.instructblip import INSTRUCTION_FILES
from vlmax.interop.tokenizer import tokenizer_config
from vlmax.interop.trained import is_run
from vlmax.models.decoders.bert import BERT
from vlmax.models.decoders.t5 import T5
from vlmax.systems.blip_model import DECODE, ENCODE
from vlmax.systems.blip_vqa import BLIPVQA
from vlmax.systems.system import Carried, Params, Writes
from vlmax.training.restored import restore


@dataclasses.dataclass(frozen=True)
class Describer:
    """A system that writes about images, with all that it needs.

    Attributes:
      system: it implements `Writes`.
      params: its parameters.
      carried: beside them.
      prompting: how a prompt is put to it.
      instruction: how the prompt is put to a Q-Former that reads it, too.
      image: what happens to a picture.
      prompt: what it is asked where nothing is said.
    """

    system: Any
    params: Params
    carried: Carried
    prompting: Prompting
    instruction: Instruction | None
    image: ImageTransform
    prompt: str


@dataclasses.dataclass(frozen=True)
class Ready:
    """A tokenizer that is open already."""

    tokenizer: Tokenizer

    def open(self) -> Tokenizer:
        """It."""
        return self.tokenizer


def open_describer(path: str, mesh: jax.sharding.Mesh, dtype: str | None) -> Describer:
    """A run's system or that of a checkpoint. Call it inside mesh and rules.

    Args:
      path: as `vlmax.load` takes it. A run is asked and shown pictures as in its first evaluation of captions.
      mesh: where the parameters go.
      dtype: see `vlmax.load`; a run computes in what its experiment says unless one is given.

    Raises:
      InputError: as `vlmax.load`; the system does not write, or a tokenizer is missing.
    """
    if is_run(Path(path)):
        return _of_run(Path(path), mesh, dtype)
    found = load_beside(path, mesh, dtype)
    system: Any = found.model
    _check_writes(path, system)
    if found.tokenizer is None:
        raise InputError(f"{path}: there is no tokenizer beside the system; put its files into the folder")
    height, width = system.inputs()["image"].shape[-3:-1]
    if height != width:
        raise InputError(f"{path}: its images are {height} x {width}, and a file can only be made square")
    carried = {name: tree for name, tree in found.variables.items() if name != "params"}
    prompting = prompting_of(system, Ready(found.tokenizer))
    instruction = _instruction(system, found.files)
    transform = ImageTransform(Squash(height))
    return Describer(system, found.variables["params"], carried, prompting, instruction, transform, "")


def _of_run(path: Path, mesh: jax.sharding.Mesh, dtype: str | None) -> Describer:
    found = restore(path, mesh)
    _check_writes(str(path), found.system)
    system: Any = found.system if dtype is None else computing_in(found.system, dtype)
    if found.prompts is None:
        made: Any = found.preprocess
        told = prompting_of(system, getattr(made, "pairs", made).tokenizer)
        prompts: Any = {"prompting": told, "prompt": "", "instruction": getattr(made, "instruction", None)}
    else:
        prompts = found.prompts
    return Describer(system, found.params, found.carried, image=found.image, **prompts)


def prompting_of(system: Any, tokenizer: TokenizerConfig) -> Prompting:
    """How prompts are put to a system of that kind, as its paper has it."""
    if isinstance(system, BLIPVQA):
        return Prompting(tokenizer, begin=ENCODE, closed=True)
    config = system.decoder_module().config
    if isinstance(config, BERT):
        return Prompting(tokenizer, begin=DECODE)
    return Prompting(tokenizer, closed=isinstance(config, T5))


def describe(
    describer: Describer,
    images: Sequence[str],
    prompts: Sequence[str],
    settings: Generation,
    mesh: jax.sharding.Mesh,
) -> list[str]:
    """What the system writes about every image file.

    Args:
      describer: see `open_describer`.
      images: paths of files.
      prompts: one for each, or one for all; (): the describer's.
      settings: see `Generation`.
      mesh: the describer's.

    Raises:
      InputError: a file that is missing or no image, another number of prompts than of images, prompts that the system
        has no room for.
    """
    asked = [*(prompts or (describer.prompt,))]
    if len(asked) not in (1, len(images)):
        raise InputError(f"--prompt: {len(asked)} prompts for {len(images)} images; give one, or one for each image")
    asked = asked * (len(images) // len(asked))
    pictures = [picture(path, describer.image) for path in images]
    batch = _batch(describer, pictures, asked, mesh)
    writer = Writer(describer.system, describer.params, describer.carried)
    pieces = describer.prompting.token_bytes(settings.stop, writer.vocab)
    found = writer.generate(batch, settings, describer.prompting.marks(), pieces).tokens
    return [describer.prompting.written(tokens, settings.stop) for tokens in found[: len(images)]]


def picture(path: str, transform: ImageTransform) -> np.ndarray:
    """The pixels of a file; raises `InputError` where it is missing or no image."""
    try:
        return transform(Path(path).read_bytes(), np.random.default_rng(0))
    except OSError as error:
        raise InputError(f"--image {path}: it cannot be read ({error.strerror}); name an image file") from None
    except BadRecord as error:
        raise InputError(f"--image {path}: it is no image that can be decoded ({error}); name another") from None


def _batch(
    describer: Describer, pictures: Sequence[np.ndarray], prompts: Sequence[str], mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """The features, filled up so that rows divide over the devices of the batch."""
    tokens = [describer.prompting.tokens(prompt) for prompt in prompts]
    longest = max(map(len, tokens))
    rows = [{"image": image, **prompt_row(row, longest)} for image, row in zip(pictures, tokens, strict=True)]
    if describer.instruction is not None:
        for row, prompt in zip(rows, prompts, strict=True):
            row["instruction"] = describer.instruction.fixed(prompt)[0]
    missing = -len(rows) % batch_parts(mesh)
    valid = np.arange(len(rows) + missing) < len(rows)
    rows += rows[-1:] * missing
    return {"valid": valid, **{name: np.stack([row[name] for row in rows]) for name in rows[0]}}


def _instruction(system: Any, files: Path) -> Instruction | None:
    """How a Q-Former reads a prompt; its tokenizer lies in a folder of its own."""
    read = system.inputs().get("instruction")
    if read is None:
        return None
    tokenizer = tokenizer_config(files / INSTRUCTION_FILES)
    if tokenizer is None:
        raise InputError(
            f"{files}: the Q-Former reads instructions, and its tokenizer is not there; put its files into "
            f"{files / INSTRUCTION_FILES}"
        )
    system.check_instruction(tokenizer.open())
    return Instruction(tokenizer, read.shape[0])


def _check_writes(path: str, system: Any) -> None:
    if not isinstance(system, Writes):
        raise InputError(
            f"{path}: its {type(system).__name__} writes nothing about an image; take a system that does, such as "
            "BLIP's captioner or BLIP-2's second stage"
        )
