"""Writes torch's files without torch."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

STORAGE = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(array: np.ndarray, key: str) -> bytes:
    """What builds one tensor."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    kind = STORAGE[array.dtype.name].encode()
    stored = b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu") + number(array.size) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = stored + number(0) + numbers(array.shape) + numbers(strides) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def program(arrays: Mapping[str, np.ndarray], more: bytes = b"") -> bytes:
    """A pickle of a state dictionary; `more` are further pairs of it."""
    pairs = b"".join(text(name) + tensor(array, str(i)) for i, (name, array) in enumerate(arrays.items()))
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + pairs + more + b"u."


def write(path: Path, arrays: Mapping[str, np.ndarray], data: bytes | None = None) -> None:
    """A file as `torch.save(state_dict)` writes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program(arrays) if data is None else data)
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{i}", array.tobytes("K"))
        archive.writestr("archive/version", "3\n")


class Bomb:
    """What a pickle with code in it looks like."""

    def __reduce__(self):
        return (print, ("it ran",))


def bomb() -> bytes:
    """A pickle that calls a function, among tensors."""
    return pickle.dumps({"weight": Bomb()}, protocol=2)
