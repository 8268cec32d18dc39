"""All families, and which of them a folder is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmax.errors import InputError, nearest
from vlmax.interop import (
    bert,
    blip,
    blip2,
    blip2_matching,
    clip,
    dinov2,
    gpt2,
    instructblip,
    llama,
    open_clip,
    opt,
    resnet,
    siglip,
    t5,
    vit,
)
from vlmax.interop.family import Family, Json
from vlmax.systems.system import System

FAMILIES: tuple[Family, ...] = (
    *clip.FAMILIES,
    open_clip.FAMILY,
    *siglip.FAMILIES,
    vit.FAMILY,
    dinov2.FAMILY,
    resnet.FAMILY,
    bert.FAMILY,
    t5.FAMILY,
    gpt2.FAMILY,
    opt.FAMILY,
    llama.FAMILY,
    *blip.FAMILIES,
    blip2.FAMILY,
    blip2_matching.FAMILY,
    instructblip.FAMILY,
)

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
FILES = ("openai", "blip_pth", "lavis")
"""Layouts of single files without a configuration."""
KNOWN = (*dict.fromkeys(kind for family in FAMILIES for kind in family.model_types), open_clip.FAMILY.name, *FILES)


def of_model_type(found: Json, where: Path) -> Family:
    """The family of a config.json; raises InputError for one that is not known."""
    kind, architecture = found.get("model_type"), (found.get("architectures") or [None])[0]
    of_type = [family for family in FAMILIES if kind in family.model_types]
    for family in of_type:
        if not family.architectures or architecture in family.architectures:
            return family
    if of_type:
        names = ", ".join(name for family in of_type for name in family.architectures)
        raise InputError(
            f"reading {where}: it is a {kind} whose `architectures` begins with {architecture!r}; vlmax has systems "
            f"for {names}"
        )
    raise InputError(
        f"reading {where}: its model_type is {kind!r}, which vlmax does not know; {nearest(str(kind), KNOWN)} "
        f"(known: {', '.join(KNOWN)})"
    )


def of_config(config: Any) -> Family:
    """A family of our configuration's class, for what all of them agree in; a system that none has is one by itself."""
    for family in FAMILIES:
        if type(config) is family.config:
            return family
    if isinstance(config, System):
        return Family("vlmax", (), type(config), _foreign, _foreign, ())
    raise InputError(f"no family of checkpoints has a model as {type(config).__name__}")


def _foreign(described: Any) -> Any:
    raise InputError(f"no foreign format has a model as {type(described).__name__}; choose vlmax's own")


def that_writes(config: Any, name: str) -> tuple[Family, dict[str, Any]]:
    """The family whose format `name` can express the model, and its configuration file.

    Args:
      config: our configuration.
      name: `huggingface`, or the name of a family.

    Raises:
      InputError: none can.
    """
    names = ("huggingface", *(family.name for family in FAMILIES))
    if name not in names:
        raise InputError(f"--format: there is no format {name!r}; {nearest(name, names)}")
    reasons = []
    for family in FAMILIES:
        if name not in (family.name, "huggingface") or (name == "huggingface" and not family.model_types):
            continue
        if type(config) is family.config:
            try:
                return family, family.write(config)
            except InputError as error:
                reasons.append(str(error))
    if not reasons:
        raise InputError(f"writing a {name} checkpoint: that format has no model like {type(config).__name__}")
    raise InputError("\n".join(reasons))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file; raises InputError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"reading {path}: it is no JSON file ({error}); fetch it anew") from None
    if not isinstance(found, dict):
        raise InputError(f"reading {path}: it holds a {type(found).__name__}, not an object; fetch it anew")
    return found
