"""Image-text pairs in tar or ArrayRecord shards, told apart by the shards' names."""

from __future__ import annotations

import dataclasses

from vlmax.data.example import Reader
from vlmax.data.sources.array_record import ArrayRecord
from vlmax.data.sources.files import braces, wrong
from vlmax.data.sources.webdataset import WebDataset


@dataclasses.dataclass(frozen=True)
class Shards:
    """Tar shards with `jpg` and `txt`, as img2dataset writes them, or ArrayRecord files, as vlmax.prepare does.

    The latter have the features `image` and `texts`. For shards made otherwise take `WebDataset` or `ArrayRecord`.

    Attributes:
      paths: the shards: paths, globs, brace lists (`pairs/{00000..41454}.tar`), on disk or in an object store.
      name: what the source is called in metrics, quarantine.jsonl and messages.
    """

    paths: tuple[str, ...]
    name: str = "pairs"

    def open(self) -> Reader:
        """Opens the shards; raises `InputError` where one is missing, or their names are of neither kind or of both."""
        files = [path.rsplit("/", 1)[-1] for given in self.paths for path in braces(given)]
        if files and all(file.endswith(".tar") for file in files):
            return WebDataset(self.paths, self.name).open()
        if files and all(".array_record" in file for file in files):
            return ArrayRecord(self.paths, self.name).open()
        told = ", ".join(map(repr, self.paths[:3])) or "(nothing)"
        raise wrong(self.name, "paths", f"shards must all end in .tar, or all have .array_record in their name: {told}")
