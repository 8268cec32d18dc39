"""The safetensors format, read and written: eight bytes of length, a JSON header, the values one after the other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from vlmax.errors import InputError
from vlmax.interop.tensors import DTYPES, Stored, Tensors

NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000
WIDTHS = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "U32": 4, "U64": 8}
"""Bytes of the dtypes that only take room here."""


def read(path: Path) -> dict[str, Stored]:
    """The tensors of one file.

    Raises:
      InputError: the file is shorter or longer than its header says, or has no header that makes sense.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise ValueError(f"its header would have {length:,} bytes, the file has {size:,}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            tensors[name], end = _stored(path, 8 + length, name, entry, end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"reading {path}: it is no whole safetensors file ({error}); fetch it anew") from None
    if size != 8 + length + end:
        raise InputError(
            f"reading {path}: its header speaks of {8 + length + end:,} bytes and the file has {size:,}: it is cut off "
            "or damaged; fetch it anew"
        )
    return tensors


def _stored(path: Path, start: int, name: str, entry: Mapping, begin: int) -> tuple[Stored, int]:
    """A tensor from its header entry, and where it ends."""
    shape, dtype, (first, last) = tuple(map(int, entry["shape"])), entry["dtype"], entry["data_offsets"]
    width = DTYPES[dtype].itemsize if dtype in DTYPES else WIDTHS.get(dtype)
    if first != begin or min(shape, default=0) < 0:
        raise ValueError(f"the tensor {name} does not begin where the one before it ends")
    if width is not None and last - first != math.prod(shape) * width:
        raise ValueError(f"the tensor {name} {list(shape)} of {dtype} has {last - first} bytes")
    return Stored(path, start + first, shape, dtype), last


def read_sharded(index: Path) -> dict[str, Stored]:
    """The tensors of all files that a `model.safetensors.index.json` names.

    Raises:
      InputError: a file is missing or not whole, or the index does not say what the files hold.
    """
    where = weight_map(index)
    files = {name: read(file_of(index, name)) for name in sorted(set(where.values()))}
    tensors: dict[str, Stored] = {}
    for name, file in where.items():
        if name not in files[file]:
            raise InputError(f"reading {index}: it says that {file} holds {name}, which is not in it; fetch both anew")
        tensors[name] = files[file][name]
    for file, held in files.items():
        more = sorted(set(held) - set(tensors))
        if more:
            raise InputError(f"reading {index}: {file} holds {more[0]}, which the index does not name; fetch both anew")
    return tensors


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, of an index of safetensors or of torch files."""
    try:
        found = json.loads(index.read_text())["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"reading {index}: it is no index of weights ({error!r}); fetch it anew") from None


def file_of(index: Path, name: str) -> Path:
    """The file beside the index; raises InputError where it is missing or lies elsewhere."""
    path = index.parent / name
    if Path(name).name != name or not path.is_file():
        raise InputError(f"reading {index}: it names the file {name!r}, which is not beside it; fetch that file")
    return path


Source = tuple[tuple[int, ...], np.dtype, Callable[[], np.ndarray]]
"""Shape, dtype, and what gives the values when it is their turn."""


def write(path: Path, tensors: Mapping[str, Source]) -> None:
    """Writes one file; each tensor is asked for and let go of in turn."""
    tensors = widest_first(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype, _) in tensors.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (shape, dtype, values) in tensors.items():
            array = np.ascontiguousarray(values()).astype(dtype, copy=False)
            if array.size != math.prod(shape):
                raise ValueError(f"writing {name}: {array.shape} for {shape}")
            file.write(array.reshape(-1).view(np.uint8).data)


def widest_first(tensors: Mapping[str, Source]) -> dict[str, Source]:
    """In the order of a file: each tensor then begins at a multiple of the width of its numbers, as torch needs it."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1][1].itemsize))


def write_sharded(folder: Path, tensors: Mapping[str, Source], shard_bytes: int, stem: str = "model") -> None:
    """Writes `model.safetensors`, or files of at most `shard_bytes` (one tensor at least) and their index."""
    parts: list[dict[str, Source]] = [{}]
    room = shard_bytes
    for name, source in tensors.items():
        size = math.prod(source[0]) * source[1].itemsize
        if size > room and parts[-1]:
            parts.append({})
            room = shard_bytes
        parts[-1][name] = source
        room -= size
    if len(parts) == 1:
        return write(folder / f"{stem}.safetensors", parts[0])
    files = [f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        write(folder / file, part)
    total = sum(math.prod(shape) * dtype.itemsize for shape, dtype, _ in tensors.values())
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, part in zip(files, parts, strict=True) for name in part},
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def merged(parts: Iterable[Tensors], where: Path) -> dict[str, Stored]:
    """Tensors of several files as one mapping; raises InputError where two have the same name."""
    tensors: dict[str, Stored] = {}
    for part in parts:
        twice = sorted(set(part) & set(tensors))
        if twice:
            raise InputError(f"reading {where}: two files hold a tensor {twice[0]}; keep one of them")
        tensors |= part
    return tensors
