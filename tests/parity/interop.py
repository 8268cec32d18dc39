"""Random models of transformers through our folders and back: nothing missing or unexpected, no warning, same bits."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import vlmax
from tests.parity.torch_imports import transformers
from vlmax.interop.converting import convert
from vlmax.interop.loading import open_model


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random parameters and statistics that keep the layers' outputs of the order of 1, biases and norms included."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            plain = (
                parameter.ndim < 2 or "embed" in name or name.endswith(("wte.weight", "wpe.weight", "shared.weight"))
            )
            inputs = parameter.shape[0] if ".h." in name else parameter[0].numel() if parameter.ndim else 1
            parameter.normal_(std=0.5 if plain else 1.2 * inputs**-0.5)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.2)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model.eval()


@contextmanager
def no_warnings(but: str | None = None) -> Iterator[None]:
    """Fails where transformers or Python warns, of something else than `but`."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = transformers().utils.logging.get_logger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logger.removeHandler(handler)
    said = [message for message in said if but is None or but not in message]
    assert not said, said


def there_and_back(
    model: Any, folder: Path, but: str | None = None, notes: tuple[str, ...] = ("mask_token",), **options: Any
) -> tuple[Any, Any]:
    """The model through our folder into an exported one, which transformers loads; what `vlmax.load` gives of it.

    Args:
      model: of transformers.
      folder: an empty one.
      but: part of the one warning that transformers gives of its own folder, too.
      notes: of all that is told about what is left out or begins anew, a part.
      **options: for `from_pretrained`.
    """
    model.save_pretrained(folder / "theirs")
    *told, _ = convert(folder / "theirs", folder / "ours")
    assert all(any(note in line for note in notes) for line in told), told
    list(convert(folder / "ours", folder / "out", "huggingface"))
    with no_warnings(but):
        again, info = type(model).from_pretrained(folder / "out", output_loading_info=True, **options)
    assert not any(info.values()), info
    first, second = model.state_dict(), again.state_dict()
    assert set(first) == set(second)
    for name, values in first.items():
        assert values.dtype == second[name].dtype and torch.equal(values, second[name]), name
    same_configuration(model.config.to_dict(), again.config.to_dict())
    opened = [open_model(folder / name) for name in ("theirs", "ours", "out")]
    assert opened[0].config == opened[1].config == opened[2].config
    trees = [one.arrays() for one in opened]
    for path, array in trees[0].items():
        assert array.dtype == trees[2][path].dtype and np.array_equal(array, trees[2][path]), path
    loaded, params, _ = vlmax.load(folder / "out")
    return loaded, params


def same_configuration(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Equal but for where a model was loaded from."""
    gone = ("_name_or_path", "transformers_version", "dtype", "architectures")

    def plain(found):
        kept = {key: plain(value) if isinstance(value, dict) else value for key, value in found.items()}
        return {key: value for key, value in kept.items() if key not in gone}

    first, second = plain(first), plain(second)
    differ = {key: (first.get(key), second.get(key)) for key in {*first, *second} if first.get(key) != second.get(key)}
    assert not differ, json.dumps({key: [repr(v) for v in pair] for key, pair in differ.items()}, indent=1)


def close(ours: Any, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Holds an output against the reference's."""
    reference = theirs.detach().numpy()
    assert ours.shape == reference.shape
    assert np.abs(np.asarray(ours) - reference).max() <= tolerance * np.abs(reference).max()


def logits(model: Any, params: Any, *arguments: Any) -> Any:
    """Our logits."""

    @jax.jit
    def run(params):
        return model.apply(params, model.apply(params, *arguments).tokens, method="logits")

    return run(params)
