import gzip
import pickle
import zipfile

import fsspec
import pytest

from tests.data.sources.annotation_files import (
    coco,
    picture_name,
    vqa_annotations,
    vqa_questions,
    write_json,
    write_pictures,
)
from tests.shared import shared
from vlmax.data.sources.coco import CocoCaptions
from vlmax.errors import InputError


def published(folder, numbers=range(1, 8), change=lambda content: None):
    """The files of a split: captions and pictures."""
    content = coco(numbers)
    images = write_pictures(folder / "train2014", [picture_name(i) for i in numbers])
    change(content)
    return CocoCaptions((write_json(folder / "captions_train2014.json", content),), (f"{folder}/train2014",)), images


@pytest.mark.parametrize("place", ["folder", "file://", "memory://", "zip"])
def test_a_picture_has_all_its_captions_wherever_it_lies(tmp_path, place):
    source, images = published(tmp_path)
    if place == "zip":
        with zipfile.ZipFile(tmp_path / "train2014.zip", "w") as archive:
            for name, data in images.items():
                archive.writestr(f"train2014/{name}", data)
        source = CocoCaptions(source.annotations, (f"zip://train2014::{tmp_path}/train2014.zip",))
    elif place != "folder":
        base = f"{place}{tmp_path}"
        for path in (p for p in tmp_path.rglob("*") if p.is_file() and place == "memory://"):
            with fsspec.open(f"{base}/{path.relative_to(tmp_path)}", "wb") as out:
                out.write(path.read_bytes())
        source = CocoCaptions((f"{base}/captions_train2014.json",), (f"{base}/train2014",))
    reader = pickle.loads(pickle.dumps(source.open()))
    assert len(reader) == 7 and len(pickle.dumps(reader)) < 1000
    for i in (7, 1, 4):
        example = reader[i - 1]
        assert (example.key, example.image) == (picture_name(i), images[picture_name(i)])
        assert example.texts == tuple(f"Caption {n} of picture {i}, é." for n in range(5))
        assert example.fields == {"image_id": i}


def test_several_files_and_places_and_fields(tmp_path):
    train, _ = published(tmp_path)
    content = coco(range(20, 22), each=2)
    for image in content["images"]:
        image |= {"file_name": f"{image['id']}.jpg", "domain": "near-domain"}
    write_pictures(tmp_path / "validation", ["20.jpg", "21.jpg"])
    nocaps = write_json(tmp_path / "nocaps_val_4500_captions.json", content)
    both = CocoCaptions(
        (*train.annotations, nocaps), (*train.images, f"{tmp_path}/validation"), fields=("domain",)
    ).open()
    assert len(both) == 9 and both[8].fields == {"image_id": 21, "domain": "near-domain"}
    assert both[0].fields == {"image_id": 1, "domain": None}


def test_some_of_the_pictures_by_what_the_file_says_of_them(tmp_path):
    content = coco(range(4))
    for image, domain in zip(content["images"], ("in", "near", "out", "near"), strict=True):
        image["domain"] = f"{domain}-domain"
    path = write_json(tmp_path / "nocaps_val_4500_captions.json", content)
    write_pictures(tmp_path, [picture_name(i) for i in range(4)])
    near = CocoCaptions((path,), (str(tmp_path),), where=(("domain", ("near-domain",)),))
    reader = near.open()
    assert [reader[i].fields["image_id"] for i in range(len(reader))] == [1, 3] and len(reader[1].texts) == 5
    two = CocoCaptions((path,), (str(tmp_path),), where=(("domain", ("in-domain", "out-domain")),)).open()
    assert [two[i].fields["image_id"] for i in range(len(two))] == [0, 2]
    with pytest.raises(InputError, match=r"none of the 4 pictures is one where .*near.*change `where`"):
        CocoCaptions((path,), (str(tmp_path),), where=(("domain", ("near",)),)).open()


def test_the_index_is_read_again_until_a_file_changes(tmp_path, monkeypatch):
    source, _ = published(tmp_path)
    first = source.open()
    monkeypatch.setattr(CocoCaptions, "_records", None)
    assert source.open().index.path == first.index.path and source.open()[2] == first[2]
    monkeypatch.undo()
    content = coco(range(1, 8))
    content["annotations"][0]["caption"] = "Another caption."
    write_json(tmp_path / "captions_train2014.json", content)
    assert source.open()[0].texts[0] == "Another caption."


def test_pictures_without_captions_are_read_where_that_is_meant(tmp_path):
    source, _ = published(tmp_path, change=lambda c: c.pop("annotations"))
    with pytest.raises(InputError, match=r"is COCO's list of pictures alone .* must name COCO's form of captions"):
        source.open()
    alone = CocoCaptions(source.annotations, source.images, captioned=False).open()
    assert len(alone) == 7 and alone[0].texts == ()


def test_everything_that_is_wrong_is_told_at_once_with_its_number(tmp_path):
    def damage(content):
        content["images"].append(content["images"][0])
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in (2, 3)]
        content["annotations"] += [
            {"id": 100, "image_id": 1, "caption": "again"}, {"id": 9, "image_id": 99, "caption": "of nothing"},
            {"id": 10, "image_id": 1, "caption": " "}, {"id": 11, "image_id": 1, "caption": None},
        ]  # fmt: skip

    source, _ = published(tmp_path, change=damage)
    for i in (4, 5, 6):
        (tmp_path / "train2014" / picture_name(i)).unlink()
    with pytest.raises(InputError) as raised:
        source.open()
    message = str(raised.value)
    for told in (
        "opening the source 'coco'",
        "1 ids of pictures that occur more than once: 1",
        "1 ids of captions that occur more than once: 100",
        "2 elements whose 'caption' is no text or empty: 10, 11",
        "1 pictures that captions name and `images` does not list: 99",
        f"2 pictures without a caption: {picture_name(2)}, {picture_name(3)}",
        f"3 pictures are missing: {picture_name(4)}, {picture_name(5)}, {picture_name(6)}",
        "change `annotations and images`",
    ):
        assert told in message
    with pytest.raises(InputError):  # and again: no index of damaged files is kept
        source.open()


def test_of_many_missing_pictures_the_first_are_named(tmp_path):
    source, _ = published(tmp_path, range(1, 60))
    for path in (tmp_path / "train2014").iterdir():
        path.unlink()
    first, last = picture_name(1), picture_name(5)
    with pytest.raises(InputError, match=rf"59 pictures are missing: {first}.*{last}, \.\.\.; change `images`"):
        source.open()


def test_a_subset_is_what_pictures_there_are_at_each_start(tmp_path):
    source, _ = published(tmp_path)
    for i in (2, 3, 7):
        (tmp_path / "train2014" / picture_name(i)).unlink()
    some = CocoCaptions(source.annotations, source.images, subset=True)
    reader = some.open()
    assert [reader[i].fields["image_id"] for i in range(len(reader))] == [1, 4, 5, 6]
    write_pictures(tmp_path / "train2014", [picture_name(3)])
    assert len(some.open()) == 5 and len(reader) == 4 and reader[1].fields["image_id"] == 4
    with pytest.raises(InputError, match=r"none of the pictures .* is in nowhere"):
        CocoCaptions(source.annotations, ("nowhere",), subset=True).open()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (vqa_questions(range(4)), "is the file of VQA questions"),
        (vqa_annotations(range(4)), "is the file of VQA annotations"),
        ({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}, "form of objects"),
        ([{"image": "a.jpg", "caption": "b"}], "is BLIP's form of captions"),
        ({"a": 1, "b": [2]}, "is an object of `a`, `b`"),
        ([1], "is a list of int"), ([], "is an empty list or object"),
        (coco(range(1)) | {"annotations": []}, "it has no 'annotations'"),
        (coco(range(1)) | {"annotations": [{"id": 1, "image_id": None, "caption": "a"}]}, "has null as 'image_id'"),
        ({"images": [{"id": [1], "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]},
         "is damaged: element 0, in 'images', has [1] as 'id'"),
    ],
)  # fmt: skip
def test_another_file_is_recognised(tmp_path, content, told):
    path = write_json(tmp_path / "a.json", content)
    with pytest.raises(InputError, match=r"opening the source 'coco'.*change `annotations`") as raised:
        CocoCaptions((path,), (str(tmp_path),)).open()
    assert told in str(raised.value)


def test_files_that_are_no_json_or_not_there(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [{"id": 1, "file_name": "a.jpg"},')
    for path, told in [("a.json", "cannot be read as JSON"), ("b.json", "b.json is missing")]:
        with pytest.raises(InputError, match=told):
            CocoCaptions((f"{tmp_path}/{path}",), (str(tmp_path),)).open()
    source, _ = published(tmp_path)
    with pytest.raises(InputError, match="change `images`"):
        CocoCaptions(source.annotations, ()).open()


def test_the_shared_captions_and_photographs_are_read_as_published(tmp_path):
    packed = shared("data", "coco_captions_val2017", "captions_val2017.json.gz")
    photos = shared("data", "coco_photos", "images")
    path = tmp_path / "captions_val2017.json"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    reader = CocoCaptions((str(path),), (str(photos),), subset=True).open()
    assert len(reader) == 91
    examples = {e.fields["image_id"]: e for e in (reader[i] for i in range(len(reader)))}
    assert sum(len(e.texts) for e in examples.values()) == 91 * 5 + sum(len(e.texts) - 5 for e in examples.values())
    assert "A big burly grizzly bear is show with grass in the background." in examples[285].texts
    assert examples[285].image == (photos / "000000000285.jpg").read_bytes()
    with pytest.raises(InputError, match=r"4909 pictures are missing: 000000"):
        CocoCaptions((str(path),), (str(photos),)).open()
