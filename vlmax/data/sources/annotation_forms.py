"""What a file of annotations is, told by what it holds: for the message to whoever names the wrong one."""

from __future__ import annotations

import itertools
import json
from typing import IO, Any

from vlmax.data.sources.json_members import members

CAPTIONS = "COCO's form of captions (`images` and `annotations` with `caption`)"
IMAGE_INFO = "COCO's list of pictures alone (`images`, no captions)"
OBJECTS = "COCO's form of objects (`annotations` with `bbox`), not of captions"
QUESTIONS = "the file of VQA questions (`questions` with `question_id`)"
ANSWERS = "the file of VQA annotations (`annotations` with `answers`)"
KARPATHY = "Karpathy's form of captions (`images` with `sentences` and `split`)"
CAPTION_LIST = "BLIP's form of captions (a list of `image` and `caption`)"
QUESTION_LIST = "BLIP's form of questions (a list of `image`, `question` and `answer`)"
REGIONS = "Visual Genome's region descriptions (a list of `regions`)"
GENOME_QUESTIONS = "Visual Genome's questions (a list of `qas`)"
GQA = "GQA's questions (an object of `imageId` and `question` by number)"
NLVR2 = "NLVR2's statements (JSON lines of `identifier` and `sentence`)"

# The member (None: an outermost list; "": any), what an element of it has, and what the file is then.
_SIGNS: tuple[tuple[str | None, tuple[str, ...], str], ...] = (
    ("questions", ("question_id", "question"), QUESTIONS),
    ("annotations", ("question_id", "answers"), ANSWERS),
    ("annotations", ("image_id", "caption"), CAPTIONS),
    ("annotations", ("image_id", "bbox"), OBJECTS),
    ("images", ("sentences",), KARPATHY),
    ("images", ("id", "file_name"), IMAGE_INFO),
    (None, ("image", "caption"), CAPTION_LIST),
    (None, ("image", "question"), QUESTION_LIST),
    (None, ("regions",), REGIONS),
    (None, ("qas",), GENOME_QUESTIONS),
    ("", ("imageId", "question"), GQA),
)
_LINES = 3


def recognised(handle: IO[bytes]) -> str:
    """What the file is, in words; of one that is nothing known, what it holds."""
    first = handle.readline(1 << 20)
    second = handle.readline(1 << 20)
    handle.seek(0)
    if second.startswith(b"{") and first.startswith(b"{"):
        return _recognised_lines(first)
    found: dict[str | None, Any] = {}
    try:
        for name, element in members(handle):
            found.setdefault(name, element)
    except ValueError:
        return "not JSON"
    for name, needed, form in _SIGNS:
        elements = list(found.values())[:1] if name == "" else [found.get(name)]
        if any(isinstance(e, dict) and all(n in e for n in needed) for e in elements):
            return form
    if None in found:
        element = found[None]
        return f"a list of {_names(element) if isinstance(element, dict) else type(element).__name__}"
    return f"an object of {_names(found)}" if found else "an empty list or object"


def _recognised_lines(line: bytes) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        return "not JSON"
    return NLVR2 if {"identifier", "sentence"} <= row.keys() else f"JSON lines of {_names(row)}"


def _names(found: Any) -> str:
    shown = ", ".join(f"`{name}`" for name in itertools.islice(found, 6))
    return f"{shown}, ..." if len(found) > 6 else shown
