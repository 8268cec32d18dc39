"""NLVR2's statements about two photographs as published: `train.json`, `dev.json`, `test1.json` and folders of PNGs.

    {"identifier": "train-10171-0-0", "sentence": "There are ...", "label": "True", "directory": 77, ...}    one a line
    images/train/77/train-10171-0-img0.png   images/train/77/train-10171-0-img1.png   dev/dev-850-0-img0.png

Alane Suhr and others, ACL 2019. `directory` is that of the training split's pictures; the others lie in one folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmax.data.sources.annotated import AnnotatedReader, Needs, Problems, Record, open_annotated, read_lines, text_in
from vlmax.data.sources.annotation_forms import NLVR2 as FORM
from vlmax.data.sources.files import find

LABELS = {"true": 1, "false": 0}


@dataclasses.dataclass(frozen=True)
class NLVR2:
    """A statement about two pictures, the left one and the right one, and whether it is true.

    The left picture is the example's, the right one its field `second_image` (encoded bytes). Further fields: `label`,
    1 where the statement is true, else 0, and `pair`, equal for the statements about one pair. The text is the
    statement, the key its identifier.

    Attributes:
      statements: `train.json`, or several such.
      images: where the pictures are: the folders `images/train` (with `0/`, `1/`, ...), `dev` and `test1`; also URLs,
        and folders in zip files (`zip://dev::/data/dev_img.zip`).
      name: what the source is called in metrics, quarantine.jsonl and messages.
      subset: leaves out statements whose pictures are not there; else a missing one is an error.
    """

    statements: tuple[str, ...]
    images: tuple[str, ...]
    name: str = "nlvr2"
    subset: bool = False

    def open(self) -> AnnotatedReader:
        """Reads the files, or finds their index.

        Raises:
          InputError: a file or picture is missing, an identifier occurs twice, a statement is empty or has no label, or
            a file is of another form.
        """
        files = find(self.statements, self.name, "statements")
        return open_annotated(self, files, "statements", lambda problems: self._records(files, problems))

    def _records(self, files, problems: Problems) -> Iterator[Record]:
        needs: Needs = {"identifier": str, "sentence": object, "label": object}
        for row in read_lines(files, self.name, "statements", needs, FORM):
            identifier = row["identifier"]
            pair, dash, _ = identifier.rpartition("-")
            label = LABELS.get(str(row["label"]).lower())
            sentence = text_in(row, "sentence", problems, "statements", identifier)
            if label is None or not dash:
                what = "statements whose label is not true or false, or whose identifier is none"
                problems.add("statements", what, identifier)
                continue
            folder = f"{row['directory']}/" if row.get("directory") is not None else ""
            pictures = (f"{folder}{pair}-img0.png", f"{folder}{pair}-img1.png")
            yield Record(identifier, pictures, () if sentence is None else (sentence,), {"label": label, "pair": pair})
