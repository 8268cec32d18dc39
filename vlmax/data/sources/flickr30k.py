"""Flickr30k's captions as published: `results_20130124.token` and the folder `flickr30k-images`.

    1000092795.jpg#0<TAB>Two young guys with shaggy hair look at their hands while hanging out in the yard .

Peter Young, Alice Lai, Micah Hodosh, Julia Hockenmaier, TACL 2014. The file has no splits: the ones that results are
given on are Karpathy's (`karpathy.py`), or lists of pictures as Flickr30k Entities has them (`train.txt`, ...).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from vlmax.data.example import BadRecord
from vlmax.data.sources import rows
from vlmax.data.sources.annotated import AnnotatedReader, Problems, Record, open_annotated
from vlmax.data.sources.files import find, open_file, wrong


@dataclasses.dataclass(frozen=True)
class Flickr30k:
    """Pictures, each with all its captions. The field `image_id` is the picture's number; the key is its name.

    Attributes:
      captions: `results_20130124.token`.
      images: where the pictures are: folders, URLs, or folders in zip files (`zip://flickr30k-images::/data/f.zip`).
      only: a file of pictures' numbers, one a line (`test.txt` of Flickr30k Entities), to read these alone.
      name: what the source is called in metrics, quarantine.jsonl and messages.
      subset: leaves out pictures that are not there; else a missing one is an error.
    """

    captions: str
    images: tuple[str, ...]
    only: str | None = None
    name: str = "flickr30k"
    subset: bool = False

    def open(self) -> AnnotatedReader:
        """Reads the captions, or finds their index.

        Raises:
          InputError: a file or picture is missing, a caption occurs twice or is empty, a picture of `only` has no
            caption, or the file is of another form.
        """
        files = find(self.captions, self.name, "captions")
        if self.only is not None:
            files += find(self.only, self.name, "only")
        return open_annotated(self, files, "captions", lambda problems: self._records(files, problems))

    def _records(self, files, problems: Problems) -> Iterator[Record]:
        captions: dict[str, dict[str, str]] = {}
        for number, line in enumerate(_lines(files[0].path), 1):
            name, tab, text = _text(line, files[0].path, self.name).partition("\t")
            picture, mark, which = name.rpartition("#")
            if not tab or not mark or not which.isdigit():
                told = f"line {number} of {files[0].path} is {line[:60]!r}"
                raise wrong(self.name, "captions", f"{told} and must be `1000092795.jpg#0`, a tab, a caption")
            if not text.strip():
                problems.add("captions", "empty captions", name)
            if which in captions.setdefault(picture, {}):
                problems.add("captions", "ids of captions that occur more than once", name)
            captions[picture][which] = text.strip()
        wanted: Any = captions
        if self.only is not None:
            wanted = [_text(line, self.only, self.name).strip().removesuffix(".jpg") for line in _lines(files[1].path)]
            wanted = [f"{picture}.jpg" for picture in wanted]
        for picture in wanted:
            if picture not in captions:
                problems.add("only", "pictures without a caption", picture)
                continue
            texts = tuple(text for _, text in sorted(captions[picture].items(), key=lambda item: int(item[0])))
            yield Record(picture, (picture,), texts, {"image_id": picture.removesuffix(".jpg")})


def _lines(path: str) -> Iterator[bytes]:
    with open_file(path) as handle:
        for line in handle:
            if line.strip():
                yield line.rstrip(b"\r\n")


def _text(line: bytes, path: str, source: str) -> str:
    try:
        return rows.text_of(line, "a line")
    except BadRecord as error:
        raise wrong(source, "captions", f"{path}: {error}") from None
