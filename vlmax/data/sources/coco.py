"""COCO's captions as published, and what has the same form: NoCaps, and COCO captions in other languages.

annotations/captions_train2014.json   {"images": [{"id", "file_name"}, ...],
                                       "annotations": [{"id", "image_id", "caption"}, ...]}
train2014/COCO_train2014_000000000009.jpg
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from vlmax.data.sources import rows
from vlmax.data.sources.annotated import (
    ID,
    AnnotatedReader,
    Needs,
    Problems,
    Record,
    open_annotated,
    read_members,
    text_in,
)
from vlmax.data.sources.annotation_forms import CAPTIONS, IMAGE_INFO
from vlmax.data.sources.files import find, wrong


@dataclasses.dataclass(frozen=True)
class CocoCaptions:
    """Pictures, each with all its captions. The field `image_id` is the picture's id; the key is its name.

    Attributes:
      annotations: `captions_train2014.json`, or several such; `nocaps_val_4500_captions.json`.
      images: where the pictures are: folders, URLs, or folders in zip files (`zip://train2014::/data/train2014.zip`).
      name: what the source is called in metrics, quarantine.jsonl and messages.
      fields: further values of the file's `images` to keep, such as `domain` of NoCaps; None where one has none.
      where: keeps only pictures of which such a value is one of these: `(("domain", ("out-domain",)),)`.
      captioned: False reads pictures alone, of a file without captions, as those of test splits are.
      subset: leaves out pictures that are not there; else a missing one is an error.
    """

    annotations: tuple[str, ...]
    images: tuple[str, ...]
    name: str = "coco"
    fields: tuple[str, ...] = ()
    where: rows.Where = ()
    captioned: bool = True
    subset: bool = False

    def open(self) -> AnnotatedReader:
        """Reads the annotations, or finds their index.

        Raises:
          InputError: a file or picture is missing, an id occurs twice, a picture has no caption or a caption no
            picture, `where` keeps none, or a file is of another form.
        """
        files = find(self.annotations, self.name, "annotations")
        return open_annotated(self, files, "annotations", lambda problems: self._records(files, problems))

    def _records(self, files, problems: Problems) -> Iterator[Record]:
        pictures: dict[Any, dict[str, Any] | None] = {}  # None: left out
        captions: dict[Any, list[str]] = defaultdict(list)
        seen: set[Any] = set()
        wanted: dict[str | None, Needs] = {"images": {"id": ID, "file_name": str}}
        if self.captioned:
            wanted["annotations"] = {"id": ID, "image_id": ID, "caption": object}
        form = CAPTIONS if self.captioned else IMAGE_INFO
        for member, element in read_members(files, self.name, "annotations", wanted, form):
            if member == "images":
                if element["id"] in pictures:
                    problems.add("annotations", "ids of pictures that occur more than once", element["id"])
                kept = {n: element.get(n) for n in ("file_name", *self.fields)}
                pictures[element["id"]] = kept if rows.passes(element, self.where) else None
                continue
            if element["id"] in seen:
                problems.add("annotations", "ids of captions that occur more than once", element["id"])
            seen.add(element["id"])
            caption = text_in(element, "caption", problems, "annotations", element["id"])
            if caption is not None:
                captions[element["image_id"]].append(caption)
        for image_id in captions.keys() - pictures.keys():
            problems.add("annotations", "pictures that captions name and `images` does not list", image_id)
        if not any(pictures.values()):
            raise wrong(self.name, "where", f"none of the {len(pictures)} pictures is one where {dict(self.where)}")
        for image_id, picture in pictures.items():
            if picture is None:
                continue
            if self.captioned and image_id not in captions:
                problems.add("annotations", "pictures without a caption", picture["file_name"])
            texts = tuple(captions.get(image_id, ()))
            fields = {n: picture[n] for n in self.fields}
            yield Record(picture["file_name"], (picture["file_name"],), texts, {"image_id": image_id, **fields})
