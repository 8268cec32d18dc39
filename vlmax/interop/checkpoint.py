"""A foreign checkpoint on disk: which family it is of, its configuration, its tensors."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmax.errors import InputError
from vlmax.interop import blip_pth, lavis, open_clip, safetensors, torch_files
from vlmax.interop.families import CONFIG, KNOWN, OPEN_CLIP_CONFIG, of_model_type, read_json
from vlmax.interop.family import IMAGE_FILES, Family
from vlmax.interop.tensors import Stored

TORCH = (".bin", ".pt", ".pth")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt"),
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A foreign checkpoint.

    Attributes:
      path: the folder, or the one file.
      family: its layout.
      config: our configuration of its model.
      tensors: what it holds, by its own names.
    """

    path: Path
    family: Family
    config: Any
    tensors: dict[str, Stored]


def open_checkpoint(path: Path, family: str | None = None) -> Checkpoint:
    """Reads everything but the values.

    Args:
      path: a folder, or a single file of OpenAI's, BLIP's or LAVIS's.
      family: `open_clip`, or one of `families.FILES`, where the folder has another configuration too or none.

    Raises:
      InputError: the path is missing, no family is known for it, or its files are damaged.
    """
    if family is not None and family not in KNOWN:
        raise InputError(f"reading {path}: the family {family!r} is not known; known: {', '.join(KNOWN)}")
    if path.is_file():
        return _file(path, tensors_of(path), family)
    if not path.is_dir():
        raise InputError(f"reading {path}: there is no such folder or file; give the folder that holds config.json")
    if family == "openai":
        return _file(path, tensors_of(_weights(path, (*WEIGHTS, *OPEN_CLIP_WEIGHTS))), family)
    if (path / OPEN_CLIP_CONFIG).is_file() and (family == "open_clip" or not (path / CONFIG).is_file()):
        found = read_json(path / OPEN_CLIP_CONFIG)
        with _naming(path / OPEN_CLIP_CONFIG):
            config = open_clip.FAMILY.read(found)
        tensors = tensors_of(_weights(path, (*OPEN_CLIP_WEIGHTS, *WEIGHTS)))
        return Checkpoint(path, open_clip.FAMILY, config, tensors)
    if not (path / CONFIG).is_file():
        raise InputError(
            f"reading {path}: it has no config.json, which says what model it holds; known families: {', '.join(KNOWN)}"
        )
    found = read_json(path / CONFIG)
    known = of_model_type(found, path / CONFIG)
    if family not in (None, *known.model_types):
        raise InputError(
            f"reading {path}: its config.json says {found['model_type']!r}, and the family was given as {family!r}; "
            "give none, or the folder that was meant"
        )
    return Checkpoint(path, known, _configured(path, known, found), tensors_of(_weights(path, WEIGHTS)))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Inside, errors of a configuration say where it lies; a value of another kind than is expected is one, too."""
    try:
        yield
    except InputError as error:
        raise InputError(f"reading {path}: {error}") from None
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"reading {path}: a value of its configuration is of another kind than it should be ({error}); compare it "
            "with that of a published model of the family"
        ) from error


def _configured(path: Path, family: Family, found: dict[str, Any]) -> Any:
    with _naming(path / CONFIG):
        config = family.read(found)
    pixels = next((path / name for name in IMAGE_FILES if (path / name).is_file()), None)
    if family.pixels is not None and pixels is not None:
        values = read_json(pixels)
        values = values.get("image_processor", values)  # of a processor that reads text, too
        normal = {ours: values.get(theirs) for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))}
        with _naming(pixels):
            config = family.pixels(config, {name: tuple(value) for name, value in normal.items() if value})
    return config


def _file(path: Path, tensors: dict[str, Stored], family: str | None) -> Checkpoint:
    """A file without configuration, whose tensors say what it is: OpenAI's CLIP, BLIP's, LAVIS's."""
    names = {name.removeprefix("module."): stored for name, stored in tensors.items()}
    if family == "openai" or (family is None and open_clip.OPENAI_MARK in names):
        known, read = open_clip.FAMILY, lambda names: open_clip.FAMILY.read(open_clip.described(names))
    elif family == "lavis" or (family is None and any(name.startswith(lavis.MARK) for name in names)):
        known, read = lavis.FAMILY, lavis.described
    elif family == "blip_pth" or (family is None and blip_pth.is_blip(names)):
        known, read = blip_pth.FAMILY, blip_pth.described
    else:
        raise InputError(
            f"reading {path}: it has no configuration beside it, and its tensors do not say what model they are and "
            "which activation they need; give the folder with config.json or open_clip_config.json, or say that it is "
            "OpenAI's CLIP (--family openai), BLIP's (--family blip_pth) or LAVIS's (--family lavis)"
        )
    with _naming(path):
        return Checkpoint(path, known, read(names), tensors)


def _weights(folder: Path, names: tuple[str, ...]) -> Path:
    """The file of weights, or the index of several."""
    for name in names:
        for path in (folder / f"{name}.index.json", folder / name):
            if path.is_file():
                return path
    raise InputError(f"reading {folder}: it has no weights: none of {', '.join(names)}, nor an index of such")


def tensors_of(path: Path) -> dict[str, Stored]:
    """The tensors of a file, or of all files of an index; raises InputError where they are damaged or hold code."""
    if path.name.endswith(".safetensors.index.json"):
        return safetensors.read_sharded(path)
    if path.name.endswith(".index.json"):
        files = sorted(set(safetensors.weight_map(path).values()))
        tensors = safetensors.merged((torch_files.read(safetensors.file_of(path, name)) for name in files), path)
        missing = sorted(set(safetensors.weight_map(path)) - set(tensors))
        if missing:
            raise InputError(f"reading {path}: it names {missing[0]}, which no file holds; fetch the files anew")
        return tensors
    if path.suffix in TORCH:
        return torch_files.read(path)
    if path.suffix == ".safetensors":
        return safetensors.read(path)
    raise InputError(f"reading {path}: weights are .safetensors or torch's {', '.join(TORCH)}, not {path.suffix!r}")
