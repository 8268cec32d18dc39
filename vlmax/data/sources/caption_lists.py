"""Captions in BLIP's and ALBEF's form: one JSON list of pictures and captions.

    coco_karpathy_train.json   [{"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "A woman ...",
                                 "image_id": "coco_522418"}, ...]
    coco_karpathy_test.json    [{"image": "val2014/COCO_val2014_000000391895.jpg", "caption": ["A man ...", ...]}, ...]

The files of the training splits have one element for each caption; so has the source.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from vlmax.data.sources.annotated import (
    AnnotatedReader,
    Problems,
    Record,
    Wanted,
    open_annotated,
    read_members,
    text_in,
)
from vlmax.data.sources.annotation_forms import CAPTION_LIST
from vlmax.data.sources.files import find

WANTED: Wanted = {None: {"image": str, "caption": (str, list)}}


@dataclasses.dataclass(frozen=True)
class CaptionList:
    """A picture with one caption, or with all, as the files have it.

    Fields: `image_id`, as in the file (`img_id` in those of NoCaps) or else the picture's path: equal for the captions
    of one picture. The key is that path where a picture has a list of captions, else the file's name and the element's
    number, from 0.

    Attributes:
      annotations: `coco_karpathy_train.json`, or several such (`flickr30k_test.json`, `nocaps_val.json`, ...).
      images: where the pictures are: folders, URLs, or folders in zip files (`zip://::/data/val2014.zip`).
      name: what the source is called in metrics, quarantine.jsonl and messages.
      subset: leaves out pictures that are not there; else a missing one is an error.
    """

    annotations: tuple[str, ...]
    images: tuple[str, ...]
    name: str = "captions"
    subset: bool = False

    def open(self) -> AnnotatedReader:
        """Reads the files, or finds their index.

        Raises:
          InputError: a file or picture is missing, a picture with a list of captions occurs twice, a caption is
            missing, or a file is of another form.
        """
        files = find(self.annotations, self.name, "annotations")
        return open_annotated(self, files, "annotations", lambda problems: self._records(files, problems))

    def _records(self, files, problems: Problems) -> Iterator[Record]:
        for file in files:
            base = os.path.basename(file.path)
            elements = read_members((file,), self.name, "annotations", WANTED, CAPTION_LIST)
            for number, (_, element) in enumerate(elements):
                place, path, captions = f"{base}:{number}", element["image"], element["caption"]
                many = isinstance(captions, list)
                told = [{"caption": caption} for caption in (captions if many else [captions])]
                texts = [text_in(caption, "caption", problems, "annotations", place) for caption in told]
                if not texts:
                    problems.add("annotations", "pictures without a caption", path)
                fields = {"image_id": element.get("image_id", element.get("img_id", path))}
                yield Record(path if many else place, (path,), tuple(t for t in texts if t is not None), fields)
