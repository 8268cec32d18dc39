"""Features of a whole test set: embedded on the mesh batch by batch, gathered to every process's memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32

from vlmax.data.example import Preprocess, Source
from vlmax.data.pipeline import EvaluationPipeline
from vlmax.errors import InputError
from vlmax.evaluation.evaluation import Context

Arrays = Mapping[str, Array]


def batch_spec(mesh: Mesh) -> PartitionSpec:
    """How dimension 0 of a batch lies on the mesh: over those of the axes `data` and `fsdp` that it has."""
    return PartitionSpec(_batch_axes(mesh))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the mesh divides a batch."""
    return math.prod(mesh.shape[axis] for axis in _batch_axes(mesh))


def _batch_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raises `InputError` where the devices that share a batch do not divide it."""
    shards, axes = batch_parts(mesh), _batch_axes(mesh)
    if batch_size < 1 or batch_size % shards:
        good = max(1, round(batch_size / shards)) * shards
        raise InputError(
            f"evaluation {name!r}: its batch_size {batch_size} does not divide over the {shards} parts of a batch "
            f"(mesh axes {', '.join(f'{axis}={mesh.shape[axis]}' for axis in axes)}); the nearest that does is {good}"
        )


def source_features(
    context: Context,
    name: str,
    source: Source,
    preprocess: Preprocess,
    batch_size: int,
    embed: Callable[[Arrays], Arrays],
) -> dict[str, np.ndarray]:
    """What `embed` makes of every sound example of a source, in order, whole on every process.

    Args:
      context: the model, and how it is fed.
      name: of the evaluation, for messages.
      source: is read once, from its first example to its last.
      preprocess: example -> features.
      batch_size: examples at once, over all devices.
      embed: a global batch of features -> arrays with the same rows.

    Returns:
      What `embed` gave, without the rows that filled up the last batch and those of damaged records.

    Raises:
      InputError: a batch size that does not divide, or a source without one sound example.
    """
    check_batch_size(name, batch_size, context.mesh)
    sharding = NamedSharding(context.mesh, batch_spec(context.mesh))
    options = {"workers": context.workers, "threads": context.threads}
    with EvaluationPipeline(source, preprocess, batch_size, sharding, **options) as pipeline:

        def batches() -> Iterator[Arrays]:
            for batch in pipeline:
                context.record(batch.info)
                yield {**embed(batch.arrays), "valid": batch.arrays["valid"]}

        found = gather(context.mesh, batches())
    sound = len(next(iter(found.values()))) if found else 0
    if not sound:
        raise InputError(f"evaluation {name!r}: none of {pipeline.examples} records of {source.name!r} can be decoded")
    if sound < pipeline.examples:
        left_out = pipeline.examples - sound
        context.log(f"evaluation {name!r}: {left_out} of {pipeline.examples} records are damaged and are not scored")
    return found


def gather(mesh: Mesh, batches: Iterable[Arrays]) -> dict[str, np.ndarray]:
    """Global arrays of all batches, stacked in host memory, whole on every process; rows not `valid` are left out.

    The transfer of one batch runs while the next is computed.
    """
    found: list[dict[str, np.ndarray]] = []
    for batch in _one_late(_replicate(mesh)(dict(batch)) for batch in batches):
        host = jax.device_get(batch)
        valid = host.pop("valid")
        found.append({name: rows[valid] for name, rows in host.items()})
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]} if found else {}


@functools.lru_cache(maxsize=8)
def _replicate(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def on_host(mesh: Mesh, arrays: Any) -> Any:
    """Global arrays in host memory, whole on every process."""
    return jax.device_get(jax.tree.map(_replicate(mesh), arrays))


def _one_late(items: Iterable[Any]) -> Iterator[Any]:
    waiting: list[Any] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def from_host(mesh: Mesh, array: np.ndarray, spec: PartitionSpec) -> Array:
    """A global array from a host array that every process holds whole."""
    sharding = NamedSharding(mesh, spec)
    parts = {device: array[index] for device, index in sharding.addressable_devices_indices_map(array.shape).items()}
    placed = jax.device_put(list(parts.values()), list(parts))  # explicit: allowed under a transfer guard
    return jax.make_array_from_single_device_arrays(array.shape, sharding, placed)


def text_features(context: Context, tokens: Int32[np.ndarray, "n T"], batch_size: int) -> Float[np.ndarray, "n D"]:
    """Features of texts that every process knows, `batch_size` at a time."""

    def batches() -> Iterator[Arrays]:
        spec = batch_spec(context.mesh)
        for start in range(0, len(tokens), batch_size):
            rows = tokens[start : start + batch_size]
            filled = np.concatenate([rows, np.repeat(rows[:1], batch_size - len(rows), axis=0)])
            valid = np.arange(batch_size) < len(rows)
            features = context.embed_texts(from_host(context.mesh, filled, spec))
            yield {"text": features, "valid": from_host(context.mesh, valid, spec)}

    return gather(context.mesh, batches())["text"].astype(np.float32)


def class_features(
    context: Context, class_names: Sequence[str], templates: Sequence[str], batch_size: int
) -> Float[np.ndarray, "classes D"]:
    """One normalised feature a class: each template's feature normalised, averaged over the templates, normalised.

    CLIP's prompt ensemble (open_clip, src/open_clip/zero_shot_classifier.py).
    """
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    features = normalise(text_features(context, context.tokenize(prompts), batch_size))
    return normalise(features.reshape(len(class_names), len(templates), -1).mean(axis=1))


def normalise(features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """Rows of length one; a row of zeros stays what it is."""
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def warn_not_finite(context: Context, name: str, **features: np.ndarray) -> None:
    """Says how many rows have features that are not finite; `ranking.ranks` counts them as wrong."""
    for what, rows in features.items():
        broken = int((~np.isfinite(rows.reshape(len(rows), -1)).all(axis=-1)).sum())
        if broken:
            context.log(f"evaluation {name!r}: {broken} of {len(rows)} {what} have features that are not finite")
