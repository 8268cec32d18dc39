"""Continues texts with a language model.

python -m vlmax.generate --checkpoint DIR --prompt TEXT [TEXT ...] [--beams 5] [--temperature 0] [--max-new-tokens 64]
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
    """Continues texts with a language model, and prints what it writes."""

    checkpoint: str
    """A folder that `vlmax.load` takes: vlmax's own, a run's, or Hugging Face's."""
    prompt: tuple[str, ...]
    """One or more texts."""
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
    """Loads the model, continues the prompts and prints the texts."""
    import jax
    from flax import linen as nn

    import vlmax
    from vlmax.decoding.text import continue_texts
    from vlmax.models.layers.layer_by_layer import layer_by_layer
    from vlmax.sharding.rules import rule_table

    if command.stream and len(command.prompt) > 1:
        raise InputError(f"--stream shows one text as it comes, and there are {len(command.prompt)} prompts; give one")
    mesh = command.mesh.build()
    model, params, tokenizer = vlmax.load(command.checkpoint, mesh=mesh, dtype=command.dtype)
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
            return
        texts = continue_texts(model, params, tokenizer, command.prompt, command.settings)
    for i, text in enumerate(texts):
        print(text if len(texts) == 1 else f"[{i}] {text}")


def _print_part(_: int, text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
