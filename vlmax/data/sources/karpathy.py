"""Karpathy's splits of COCO and Flickr30k: `dataset_coco.json`, `dataset_flickr30k.json`.

    {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "split": "test", "imgid": 0,
                 "cocoid": 391895, "sentences": [{"raw": "A man with ...", "sentid": 770337}, ...]}, ...]}

Andrej Karpathy and Li Fei-Fei, Deep Visual-Semantic Alignments, CVPR 2015. COCO is trained on `train` and `restval`
(113,287 pictures) and tested on the 5,000 of `test`; of Flickr30k `test` has 1,000.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

from vlmax.data.sources.annotated import (
    ID,
    AnnotatedReader,
    Problems,
    Record,
    Wanted,
    open_annotated,
    read_members,
    text_in,
)
from vlmax.data.sources.annotation_forms import KARPATHY
from vlmax.data.sources.files import find, wrong
from vlmax.errors import nearest


@dataclasses.dataclass(frozen=True)
class Karpathy:
    """Pictures of some splits, each with all its captions.

    Fields: `image_id` (COCO's, or the number in the file), `split`. The key is the picture's path in `images`.

    Attributes:
      annotations: `dataset_coco.json` or `dataset_flickr30k.json`.
      images: where the pictures are: the folder with `train2014/` and `val2014/`, or that of Flickr30k's pictures; also
        URLs, and folders in zip files (`zip://::/data/train2014.zip`).
      splits: which splits are read.
      name: what the source is called in metrics, quarantine.jsonl and messages.
      subset: leaves out pictures that are not there; else a missing one is an error.
    """

    annotations: str
    images: tuple[str, ...]
    splits: tuple[str, ...] = ("train", "restval")
    name: str = "karpathy"
    subset: bool = False

    def open(self) -> AnnotatedReader:
        """Reads the file, or finds its index.

        Raises:
          InputError: the file or a picture is missing, a picture occurs twice or has no caption, a split is not there,
            or the file is of another form.
        """
        files = find(self.annotations, self.name, "annotations")
        return open_annotated(self, files, "annotations", lambda problems: self._records(files, problems))

    def _records(self, files, problems: Problems) -> Iterator[Record]:
        found: collections.Counter[str] = collections.Counter()
        wanted: Wanted = {"images": {"filename": str, "split": str, "imgid": ID, "sentences": list}}
        for _, element in read_members(files, self.name, "annotations", wanted, KARPATHY):
            found[element["split"]] += 1
            if element["split"] not in self.splits:
                continue
            path = "/".join(str(part) for part in (element.get("filepath"), element["filename"]) if part)
            texts = [text_in(s, "raw", problems, "annotations", path) for s in element["sentences"]]
            if not texts:
                problems.add("annotations", "pictures without a caption", path)
            fields = {"image_id": element.get("cocoid", element["imgid"]), "split": element["split"]}
            yield Record(path, (path,), tuple(t for t in texts if t is not None), fields)
        for split in self.splits:
            # Flickr30k has no `restval`, and whoever trains on all of COCO asks for it by default.
            if not found[split] and split != "restval":
                told = f"no picture of the split {split!r} in {files[0].path}, {nearest(split, found)}"
                raise wrong(self.name, "splits", told)
