"""Examples as serialized `tf.train.Example`s and TFDS features, without TensorFlow.

A set that `vlmax.prepare` writes has the features `image` (encoded), `key`, `texts` and one for each further field:
an int64, a float64 (as its bytes: a tf.train.Example only knows float32), a text, or a text that is JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from google.protobuf.message import DecodeError

from vlmax.data.example import BadRecord, Example
from vlmax.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

Name = Literal["image", "text", "json", "int", "float", "float64 bytes", "label", "other"]
OPTIONAL = "empty where the record has no image"
JSON = "JSON"
OWN = ("image", "key", "texts")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a feature holds.

    Attributes:
      name: the type of one value.
      many: whether it is a sequence of them.
      optional: whether an image may be missing.
      classes: the names of a label's classes.
    """

    name: Name
    many: bool = False
    optional: bool = False
    classes: tuple[str, ...] = ()


Kinds = Mapping[str, Kind]


def kind_of(value: Any) -> Kind:
    """How a field's value is stored so that it reads back the same: `json` for all but int, float and text."""
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) is int and -(2**63) <= value < 2**63:
        return Kind("int")
    if type(value) is float:
        return Kind("float64 bytes")
    return Kind("text" if isinstance(value, str) else "json")


def kinds_of_example(example: Example) -> dict[str, Kind]:
    """The features that hold this one example."""
    image = Kind("image") if example.image is not None else Kind("image", optional=True)
    kinds = {"image": image, "key": Kind("text"), "texts": Kind("text", many=True)}
    return kinds | {n: kind_of(v) for n, v in _named_fields(example).items()}


def widen(first: Kinds, second: Kinds) -> dict[str, Kind]:
    """The features that hold the examples of both: a field that differs or is missing in one becomes JSON."""
    kinds = {n: first[n] if first.get(n) == second.get(n) else Kind("json") for n in sorted({*first, *second} - {*OWN})}
    optional = first["image"].optional or second["image"].optional
    return {"image": Kind("image", optional=optional), "key": Kind("text"), "texts": Kind("text", many=True)} | kinds


def encode(example: Example, kinds: Kinds) -> bytes:
    """A serialized example, the same bytes each time. `kinds` must hold it: see `kinds_of_example` and `widen`."""
    image = b"" if example.image is None else example.image
    image = _png(image) if isinstance(image, np.ndarray) else image
    values: dict[str, Any] = {"image": image, "key": example.key, "texts": example.texts}
    values |= _named_fields(example)
    proto = _proto()()
    for name, kind in kinds.items():
        feature, value = proto.features.feature[name], values.get(name)
        if kind.name == "int":
            feature.int64_list.value.append(int(value))  # type: ignore[arg-type]
        elif kind.name == "float64 bytes":
            feature.bytes_list.value.append(struct.pack("<d", value))
        elif kind.name == "json":
            feature.bytes_list.value.append(_json(value, name).encode())
        else:
            for one in value if kind.many else (value,):  # type: ignore[union-attr]
                feature.bytes_list.value.append(one if isinstance(one, bytes) else str(one).encode())
            feature.bytes_list.SetInParent()  # an empty list is there, too
    return proto.SerializeToString(deterministic=True)


def decode(record: bytes, kinds: Kinds | None) -> dict[str, Any]:
    """The values of a serialized example by feature, one value or a list.

    Args:
      record: the serialized example.
      kinds: what the features hold; without it one value stands for itself, several (or none) are a list.

    Raises:
      BadRecord: it is no serialized example, or JSON in it is damaged.
    """
    try:
        proto = _proto().FromString(record)
    except DecodeError:
        raise BadRecord("the record is no serialized tf.train.Example") from None
    row = {}
    for name, feature in proto.features.feature.items():
        which = feature.WhichOneof("kind")
        values = list(getattr(feature, which).value) if which else []
        kind = kinds.get(name) if kinds else None
        values = [_plain(v, kind, name) for v in values]
        many = kind.many or (kind.name == "other") if kind else len(values) != 1
        if not many and len(values) != 1:
            raise BadRecord(f"{name} has {len(values)} values, not 1")
        row[name] = values if many else values[0]
    return row


def features(kinds: Kinds) -> tfds.features.FeaturesDict:
    """The TFDS features that `encode` writes."""
    import tensorflow_datasets as tfds

    make = {
        "int": lambda: tfds.features.Scalar(np.int64),
        "float64 bytes": lambda: tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
        "text": tfds.features.Text,
        "json": lambda: tfds.features.Text(doc=JSON),
    }
    described: dict[str, Any] = {n: make[k.name]() for n, k in kinds.items() if n not in OWN}
    described |= {"key": tfds.features.Text(), "texts": tfds.features.Sequence(tfds.features.Text())}
    doc = OPTIONAL if kinds["image"].optional else None
    return tfds.features.FeaturesDict(described | {"image": tfds.features.Image(shape=(None, None, None), doc=doc)})


def kinds_in(description: bytes) -> dict[str, Kind]:
    """What the features of a `features.json` hold; raises `ValueError` where it is damaged."""
    import tensorflow_datasets as tfds

    return kinds_of(tfds.features.FeatureConnector.from_json(json.loads(description)))


def kinds_of(described: Any, prefix: str = "", many: bool = False) -> dict[str, Kind]:
    """What TFDS features hold, by the names they have in a serialized example (`captions/text`)."""
    import tensorflow_datasets as tfds

    if isinstance(described, tfds.features.FeaturesDict):
        inner = [kinds_of(described[f], f"{prefix}/{f}" if prefix else f, many) for f in described]
        return {name: kind for kinds in inner for name, kind in kinds.items()}
    if isinstance(described, tfds.features.Sequence):
        return kinds_of(described.feature, prefix, True)
    return {prefix: _kind(described, many)}


def _kind(feature: Any, many: bool) -> Kind:
    import tensorflow_datasets as tfds

    doc = feature.doc.desc
    if isinstance(feature, tfds.features.Image):
        return Kind("image", many, optional=doc == OPTIONAL)
    if isinstance(feature, tfds.features.Text):
        return Kind("json" if doc == JSON else "text", many)
    if isinstance(feature, tfds.features.ClassLabel):
        return Kind("label", many, classes=tuple(feature.names or ()))
    if isinstance(feature, tfds.features.Tensor) and feature.shape == ():
        number = np.dtype(feature.np_dtype)  # type: ignore[arg-type]
        if getattr(feature, "_encoding", None) is not None and feature._encoding.value == "bytes":
            return Kind("float64 bytes" if number == np.float64 else "other", many)
        if number.kind in "iub":
            return Kind("int", many)
        return Kind("float" if number.kind == "f" else "text", many)
    return Kind("other", many)


def _plain(value: Any, kind: Kind | None, name: str) -> Any:
    """A stored value as Python's; bytes that are not the text they should be stay bytes, for their users to find."""
    if kind is not None and kind.name == "image":
        return value
    if kind is not None and kind.name == "float64 bytes":
        if len(value) != 8:
            raise BadRecord(f"{name} has {len(value)} bytes, not the 8 of a float64")
        return struct.unpack("<d", value)[0]
    if kind is not None and kind.name == "json":
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"{name} is not JSON: {error}") from None
    if kind is not None and kind.name == "label" and kind.classes:
        if not 0 <= value < len(kind.classes):
            raise BadRecord(f"{name} is {value}, of {len(kind.classes)} classes")
        return kind.classes[value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    return value


@functools.cache
def _proto() -> Any:
    """The message type, imported at first use since TFDS takes half a second."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example  # type: ignore[attr-defined]


def _named_fields(example: Example) -> dict[str, Any]:
    """The fields by the names of their features: no `/`, which divides names, and none of the example's own names."""
    return dict(_renamed(example))


def _renamed(example: Example) -> Iterator[tuple[str, Any]]:
    for field in example.fields:
        name = str(field).replace("/", "_")
        name = f"{name}_" if name in OWN or not name else name
        if name != field and name in example.fields:
            raise InputError(
                f"the fields {field!r} and {name!r} of record {example.key!r} would both be the feature "
                f"{name!r}; leave one out with --fields"
            )
        yield name, example.fields[field]


def _json(value: Any, name: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=_jsonable)
    except (TypeError, ValueError) as error:
        raise InputError(f"the field {name!r} cannot be written as JSON: {error}; leave it out with --fields") from None


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _png(image: np.ndarray) -> bytes:
    """A raw image as PNG, without loss."""
    import cv2

    done, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    if not done:
        raise BadRecord(f"an image of shape {image.shape} cannot be written as PNG")
    return data.tobytes()
