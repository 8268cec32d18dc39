"""TFDS data sets in ArrayRecord form, by name or by folder. TensorFlow is neither needed nor imported."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from typing import Any

import fsspec
from google.protobuf import json_format

from vlmax.data import tf_examples
from vlmax.data.sources import rows
from vlmax.data.sources.array_record import ArrayRecordReader, Records, check_features
from vlmax.data.sources.files import exists, is_remote, join, local, stat, wrong
from vlmax.errors import InputError, nearest

INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class TFDS:
    """A TFDS data set that has been prepared with `file_format=array_record`, or one of `vlmax.prepare`.

    The defaults are the features that `vlmax.prepare` writes. Nested features are named as in `captions/text`.

    Attributes:
      dataset: a TFDS name (`coco_captions`, `my_set/config:1.0.0`), or the folder with dataset_info.json, on disk or
        in an object store (whose files are copied into the cache folder, each at its first record).
      split: as in TFDS: `train`, `train[:90%]`, `train+validation`.
      name: what the source is called in metrics, quarantine.jsonl and messages.
      image: the feature with the image; None for text only.
      texts: features with texts, one or several each; a class label gives its class's name.
      key: the feature that names the record; None for `file:record`.
      fields: further features to keep; `*` for all that are not used otherwise.
      data_dir: where TFDS names are looked for; by default where TFDS does (`TFDS_DATA_DIR`, ~/tensorflow_datasets).
    """

    dataset: str
    split: str = "train"
    name: str = "tfds"
    image: str | None = "image"
    texts: tuple[str, ...] = ("texts",)
    key: str | None = "key"
    fields: tuple[str, ...] = (rows.ALL,)
    data_dir: str | None = None

    def open(self) -> ArrayRecordReader:
        """Reads the data set's description and checks its files.

        Raises:
          InputError: there is no such set, split or feature, a file is missing, or it is not ArrayRecord.
        """
        builder = _builder(self)
        parts = _parts(builder, self)
        root = local(self.dataset) if is_remote(self.dataset) else None
        paths = [join(root, os.path.basename(p.filename)) if root else os.fspath(p.filename) for p in parts]
        for path in paths:
            stat(path, self.name, "dataset")
        reader = ArrayRecordReader(
            self, Records(paths, [(p.skip, p.take) for p in parts]), tf_examples.kinds_of(builder.info.features)
        )
        if not len(reader):
            raise wrong(self.name, "split", f"split {self.split!r} of {self.dataset} has no record")
        check_features(reader)
        return reader


def _builder(source: TFDS) -> Any:
    """The description of the data set, from its files alone."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    folder = local(source.dataset)
    try:
        if exists(join(folder, INFO)):
            with _description(folder) as described:
                return _random_access(tfds.builder_from_directory(described), described, source)
        if "://" in source.dataset or os.path.isdir(folder):
            raise wrong(source.name, "dataset", f"{folder} has no {INFO}, so it is no TFDS data set")
        builder = read_only_builder.builder_from_files(source.dataset, data_dir=source.data_dir)
        return _random_access(builder, os.fspath(builder.data_path), source)
    except (tfds.core.DatasetNotFoundError, FileNotFoundError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise wrong(
            source.name,
            "dataset",
            f"no TFDS data set {source.dataset!r} ({reason}; see also `data_dir`); prepare it where TFDS and "
            "TensorFlow are: tfds build --file_format=array_record",
        ) from None
    except (json_format.ParseError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise wrong(source.name, "dataset", f"the description of {source.dataset} cannot be read ({error})") from error


@contextlib.contextmanager
def _description(folder: str):
    """The folder with the set's small files (JSON, names of classes), copied where they are in an object store."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        store, inner = fsspec.core.url_to_fs(folder)
        for path in store.ls(inner, detail=False):
            if path.endswith((".json", ".txt")):
                store.get_file(path, os.path.join(copy, os.path.basename(path)))
        yield copy


def _random_access(builder: Any, folder: str, source: TFDS) -> Any:
    """The builder of the set's ArrayRecord files; raises `InputError` where it has none."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import file_adapters

    wanted = file_adapters.FileFormat.ARRAY_RECORD
    formats = builder.info.available_file_formats()
    if wanted not in formats:
        stored = ", ".join(sorted(f.value for f in formats))
        raise wrong(
            source.name,
            "dataset",
            f"{source.dataset} is stored as {stored}, which has no random access; convert it with TFDS "
            "(convert_format --out_file_format=array_record)",
        )
    return builder if builder.info.file_format == wanted else tfds.builder_from_directory(folder, file_format=wanted)


def _parts(builder: Any, source: TFDS) -> list[Any]:
    """The files of the split, with the records of each that count."""
    splits = builder.info.splits
    try:
        return [p for p in splits[source.split].file_instructions if p.take]
    except (KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0].strip("'\"")
        raise wrong(
            source.name,
            "split",
            f"no split {source.split!r} in {source.dataset}, {nearest(source.split, splits)} ({reason})",
        ) from None
