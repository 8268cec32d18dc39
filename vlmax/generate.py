"""Continues texts with a language model, or writes about images.

python -m vlmax.generate --checkpoint DIR --prompt TEXT [TEXT ...] [--beams 5] [--temperature 0] [--max-new-tokens 64]
python -m vlmax.generate --checkpoint DIR --image FILE [FILE ...] [--prompt TEXT]
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Literal

import tyro

from vlmax.decoding.settings import Generation
from vlmax.errors import InputError, exit_codes
from vlmax.sharding.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class Command:
    """Continues texts with a language model, or writes about images, and prints the texts."""

    checkpoint: str
    """A folder that `vlmax.load` takes: vlmax's own, a run's, or Hugging Face's."""
    prompt: tuple[str, ...] = ()
    """One or more texts; with images one for all, or one for each."""
    image: tuple[str, ...] = ()
    """Image files about which the system writes: captions, or answers to the prompt (BLIP, BLIP-2, InstructBLIP)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the parameters and of what the model computes in; None: as the parameters are stored."""
    stream: bool = False
    """Print a text as it comes; with one prompt."""
    mesh: Mesh = Mesh(data=1, tensor=-1)
    """Over which devices the model is spread; `tensor` must divide the heads of keys."""
    settings: Annotated[Generation, tyro.conf.OmitArgPrefixes] = Generation()


def main(arguments: list[str] | None = None) -> None:
    """The front door."""
    with exit_codes():
        command = tyro.cli(Command, args=arguments, prog="python -m vlmax.generate")
        from vlmax.host_memory import keep_freed_memory, only_cpus

        if only_cpus():
            keep_freed_memory()  # before JAX starts its threads
        run(command)


def run(command: Command) -> None:
    """Loads the model, continues the prompts or describes the images, and prints the texts."""
    _check(command)
    for i, text in enumerate(found := _described(command) if command.image else _continued(command)):
        print(text if len(found) == 1 else f"[{i}] {text}")


def _check(command: Command) -> None:
    if not command.prompt and not command.image:
        raise InputError("--prompt: there is nothing to continue; give a text, or images to write about (--image)")
    if command.stream and command.image:
        raise InputError("--stream shows a text that is continued as it comes, not one about an image; leave it out")
    if command.stream and len(command.prompt) > 1:
        raise InputError(f"--stream shows one text as it comes, and there are {len(command.prompt)} prompts; give one")


def _described(command: Command) -> list[str]:
    """What is written about every image."""
    import jax
    from flax import linen as nn

    from vlmax.about_images import describe, open_describer
    from vlmax.sharding.rules import rule_table

    mesh = command.mesh.build()
    with jax.set_mesh(mesh), nn.logical_axis_rules(rule_table((), mesh)):
        describer = open_describer(command.checkpoint, mesh, command.dtype)
        return describe(describer, command.image, command.prompt, command.settings, mesh)


def _continued(command: Command) -> list[str]:
    """How every prompt goes on; nothing where it was shown as it came."""
    import jax
    from flax import linen as nn

    import vlmax
    from vlmax.decoding.text import continue_texts
    from vlmax.models.layers.layer_by_layer import layer_by_layer
    from vlmax.sharding.rules import rule_table
    from vlmax.systems.system import Writes

    mesh = command.mesh.build()
    model, params, tokenizer = vlmax.load(command.checkpoint, mesh=mesh, dtype=command.dtype)
    if isinstance(model, Writes):
        raise InputError(
            f"--checkpoint {command.checkpoint}: it holds a {type(model).__name__}, which writes about images; give "
            "some (--image)"
        )
    if tokenizer is None:
        raise InputError(
            f"--checkpoint {command.checkpoint}: there is no tokenizer beside the model, which turns text into tokens; "
            "put its files into the folder"
        )
    if jax.default_backend() == "cpu" and mesh.size == 1:
        params = layer_by_layer(params, free=True)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rule_table((), mesh)):
        if command.stream:
            continue_texts(model, params, tokenizer, command.prompt, command.settings, on_text=_print_part)
            print()
            return []
        return continue_texts(model, params, tokenizer, command.prompt, command.settings)


def _print_part(_: int, text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
