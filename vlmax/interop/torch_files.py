"""Torch's own files (`.bin`, `.pt`, `.pth`), read without torch and without unpickling.

Such a file is a zip whose `data.pkl` says in pickle's language how to build the tensors, and whose other members are
their bytes. That language can call any function; here it is only read: numbers, strings, lists, dictionaries and
tensors are understood, a call of anything else is refused, nothing is ever run.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmax.errors import InputError
from vlmax.interop.tensors import DTYPES, Stored

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
MARK = object()


class Refused(Exception):
    """The pickle asks for something that is no weight."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that a pickle names; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(frozen=True)
class Storage:
    """The bytes of one or more tensors."""

    dtype: str
    key: str


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: where in a storage its values lie, in values."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> dict[str, Stored]:
    """The tensors of one file, by name.

    Raises:
      InputError: the file is damaged, holds code or objects beside its weights, or is older than torch 1.6.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            program = next((name for name in members if name.rpartition("/")[2] == "data.pkl"), None)
            if program is None:
                raise InputError(f"reading {path}: this zip is no torch file, for it has no data.pkl")
            folder = program.removesuffix("data.pkl")
            if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
                raise InputError(f"reading {path}: a big-endian machine wrote it; save it as safetensors there")
            found = build(archive.read(program))
        return {name: _stored(path, members, folder, name, view) for name, view in tensors_of(found).items()}
    except Refused as error:
        raise InputError(
            f"reading {path}: it holds more than weights: {error}; nothing of it was run. Take a safetensors file, or "
            "one that holds a state dictionary alone"
        ) from None
    except zipfile.BadZipFile:
        raise InputError(
            f"reading {path}: it is no torch file, or cut off, or was written by a torch before 1.6; fetch it anew, or "
            "take a safetensors file"
        ) from None
    except InputError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error) as error:
        raise InputError(f"reading {path}: it is damaged ({error!r}); fetch it anew") from None


def tensors_of(found: Any) -> dict[str, View]:
    """The tensors in a nest of dictionaries, names joined with dots; a training checkpoint's `state_dict` alone.

    Raises:
      Refused: there is none.
    """
    if isinstance(found, Mapping):
        for key in ("state_dict", "model_state_dict", "model"):
            if isinstance(found.get(key), Mapping):
                found = found[key]
    tensors: dict[str, View] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, View):
            tensors[name] = value
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                visit(inner, f"{name}.{key}" if name else str(key))

    visit(found, "")
    if not tensors:
        raise Refused("it has no dictionary of tensors")
    return tensors


def _stored(path: Path, members: Mapping[str, zipfile.ZipInfo], folder: str, name: str, view: View) -> Stored:
    """Where in the file a tensor lies."""
    info = members[f"{folder}data/{view.storage.key}"]
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"the bytes of {name} are compressed")
    strides = [math.prod(view.shape[i + 1 :]) for i in range(len(view.shape))]
    differ = any(a != b for a, b, size in zip(view.strides, strides, view.shape, strict=True) if size > 1)
    if differ and 0 not in view.shape:
        raise InputError(
            f"reading {path}: the tensor {name} {list(view.shape)} is not contiguous, its strides are {view.strides}; "
            "take a safetensors file, or save a contiguous copy of it"
        )
    with path.open("rb") as file:  # the header in place may be longer than the one in the directory
        file.seek(info.header_offset)
        signature, *_, name_length, extra_length = struct.unpack("<4s5H3I2H", file.read(30))
    if signature != b"PK\x03\x04":
        raise ValueError(f"the member {info.filename} is not where the directory says")
    width = DTYPES[view.storage.dtype].itemsize
    start = info.header_offset + 30 + name_length + extra_length
    if min((view.start, *view.shape)) < 0:
        raise ValueError(f"the tensor {name} {list(view.shape)} begins at {view.start}")
    if (view.start + math.prod(view.shape)) * width > info.file_size or start + info.file_size > path.stat().st_size:
        raise ValueError(f"the tensor {name} reaches past the end of its bytes")
    return Stored(path, start + view.start * width, view.shape, view.storage.dtype)


def call(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What the few calls that weights need would give; raises Refused for every other."""
    name = str(function)
    if name == "collections.OrderedDict" and not arguments:
        return {}
    if name == "torch._utils._rebuild_tensor_v2":
        storage, start, shape, strides = arguments[:4]
        if not isinstance(storage, Storage):
            raise ValueError("a tensor without storage")
        return View(storage, int(start), tuple(map(int, shape)), tuple(map(int, strides)))
    if name in ("torch._utils._rebuild_parameter", "torch.jit._pickle.restore_type_tag"):
        return arguments[0]
    if name.startswith("torch.jit._pickle.build_"):
        return arguments[0]
    raise Refused(f"a call of {name}")


def build(program: bytes) -> Any:
    """What a pickle describes, of numbers, strings, containers and `View`s.

    An object of a TorchScript class, as OpenAI published CLIP, becomes the dictionary of its attributes.

    Raises:
      Refused: it asks for anything else.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def to_mark() -> list[Any]:
        at = max(i for i, item in enumerate(stack) if item is MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def pop(count: int) -> tuple[Any, ...]:
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        code = opcode.name
        if code in ("PROTO", "FRAME"):
            continue
        if code == "STOP":
            return stack[-1]
        if code == "MARK":
            stack.append(MARK)
        elif code in LITERALS:
            stack.append(argument)
        elif code in CONSTANTS:
            stack.append(CONSTANTS[code]())
        elif code in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif code == "TUPLE":
            stack.append(tuple(to_mark()))
        elif code == "LIST":
            stack.append(to_mark())
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(pop(int(code[-1])))
        elif code == "APPEND":
            (item,) = pop(1)
            stack[-1].append(item)
        elif code == "APPENDS":
            items = to_mark()
            stack[-1].extend(items)
        elif code == "SETITEM":
            key, value = pop(2)
            stack[-1][key] = value
        elif code == "SETITEMS":
            pairs = to_mark()
            stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
        elif code == "GLOBAL":
            stack.append(Name(*argument.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            stack.append(Name(*map(str, pop(2))))
        elif code == "BINPERSID":
            stack.append(storage(*pop(1)))
        elif code == "REDUCE":
            stack.append(call(*pop(2)))
        elif code == "NEWOBJ":
            kind, _ = pop(2)
            if not str(kind).startswith("__torch__."):
                raise Refused(f"an object of {kind}")
            stack.append({})
        elif code == "BUILD":
            (state,) = pop(1)
            if isinstance(stack[-1], dict) and isinstance(state, dict):
                # An ordered dictionary of torch carries the attribute `_metadata`, which is no weight.
                stack[-1].update({k: v for k, v in state.items() if k != "_metadata"})
            else:
                raise Refused("an object with a state of its own")
        else:
            raise Refused(f"the instruction {code}")
    raise ValueError("it has no end")


LITERALS = (
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
CONSTANTS: dict[str, Any] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}


def storage(reference: Any) -> Storage:
    """Of a persistent id `("storage", class, key, device, values)`."""
    kind, cls, key, *_ = reference
    name = cls.name if isinstance(cls, Name) else str(cls)
    if kind != "storage" or name not in STORAGES:
        raise Refused(f"a reference to {name}")
    return Storage(STORAGES[name], str(key))
