"""Small data sets in the forms in which COCO, Flickr30k, VQA, GQA, NLVR2 and Visual Genome are published."""

from __future__ import annotations

import json
from pathlib import Path

from tests.data.sources.makers import painted_jpeg


def picture_name(number: int, subtype: str = "train2014") -> str:
    return f"COCO_{subtype}_{number:012d}.jpg"


def write_pictures(folder: Path, names: list[str]) -> dict[str, bytes]:
    """Paints a picture for each name, which may have folders; gives their bytes."""
    made = {}
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made[name] = painted_jpeg(number)
        path.write_bytes(made[name])
    return made


def write_json(path: Path, content: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(path)


def coco(numbers: range, each: int = 5) -> dict:
    images = [{"license": 4, "file_name": picture_name(i), "height": 24, "width": 24, "id": i} for i in numbers]
    annotations = [
        {"image_id": i, "id": i * 100 + n, "caption": f"Caption {n} of picture {i}, é."}
        for n in range(each)
        for i in numbers
    ]
    return {"info": {"year": 2014}, "images": images, "licenses": [], "annotations": annotations}


def karpathy(splits: list[str], coco_ids: bool = True) -> dict:
    images = []
    for i, split in enumerate(splits):
        sentences = [
            {"tokens": ["a", str(n)], "raw": f"Sentence {n} of {i}.", "imgid": i, "sentid": i * 5 + n} for n in range(5)
        ]
        image = {"filename": picture_name(i, "val2014") if coco_ids else f"{i}.jpg", "imgid": i, "split": split}
        image |= {"sentids": [s["sentid"] for s in sentences], "sentences": sentences}
        images.append(image | ({"filepath": "val2014", "cocoid": 1000 + i} if coco_ids else {}))
    return {"images": images, "dataset": "coco" if coco_ids else "flickr30k"}


def vqa_questions(numbers: range, subtype: str = "train2014") -> dict:
    asked = [{"image_id": i // 2, "question": f"What is {i}?", "question_id": i} for i in numbers]
    return {"info": {}, "task_type": "Open-Ended", "license": {}, "data_subtype": subtype, "questions": asked}


def vqa_annotations(numbers: range) -> dict:
    annotations = []
    for i in numbers:
        words = [f"answer {i}"] * 6 + ["yes"] * 3 + ["no"]
        answers = [{"answer": w, "answer_confidence": "yes", "answer_id": n + 1} for n, w in enumerate(words)]
        annotations.append(
            {"question_type": "what is", "multiple_choice_answer": words[0], "answers": answers, "image_id": i // 2,
             "answer_type": "other", "question_id": i}
        )  # fmt: skip
    return {"info": {}, "license": {}, "data_subtype": "train2014", "annotations": annotations, "data_type": "mscoco"}


def gqa(numbers: range, answers: bool = True) -> dict:
    asked = {}
    for i in numbers:
        one = {"semantic": [], "question": f"Is {i} red?", "imageId": str(i // 2), "types": {"structural": "verify"}}
        asked[f"0{i}"] = one | ({"answer": "yes", "fullAnswer": f"Yes, {i} is red."} if answers else {})
    return asked


def nlvr2(pairs: int, directory: bool) -> list[dict]:
    rows = []
    for pair in range(pairs):
        for sentence in range(2):
            row = {"sentence": f"Statement {sentence} about {pair}.", "label": "True" if sentence else "False"}
            row |= {
                "identifier": f"{'train' if directory else 'dev'}-{pair}-1-{sentence}",
                "writer": 1,
                "validation": {},
            }
            rows.append(row | ({"directory": pair % 3} if directory else {}))
    return rows


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
