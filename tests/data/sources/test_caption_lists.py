import pytest

from tests.data.sources.annotation_files import karpathy, write_json, write_pictures
from vlmax.data.sources.caption_lists import CaptionList
from vlmax.errors import InputError


def test_training_has_a_record_for_each_caption_and_testing_for_each_picture(tmp_path):
    images = write_pictures(tmp_path, ["val2014/a.jpg", "val2014/b.jpg"])
    train = [
        {"caption": f"caption {i}", "image": f"val2014/{'ab'[i // 2]}.jpg", "image_id": f"coco_{i // 2}"}
        for i in range(4)
    ]
    test = [{"image": "val2014/a.jpg", "caption": ["one", "two"]}, {"image": "val2014/b.jpg", "caption": ["three"]}]
    first = write_json(tmp_path / "coco_karpathy_train.json", train)
    second = write_json(tmp_path / "coco_karpathy_test.json", test)
    reader = CaptionList((first,), (str(tmp_path),)).open()
    assert [reader[i].texts for i in range(len(reader))] == [(f"caption {i}",) for i in range(4)]
    assert [reader[i].fields["image_id"] for i in range(4)] == ["coco_0", "coco_0", "coco_1", "coco_1"]
    assert reader[3].key == "coco_karpathy_train.json:3" and reader[3].image == images["val2014/b.jpg"]
    reader = CaptionList((second,), (str(tmp_path),)).open()
    assert [(e.key, e.texts) for e in (reader[0], reader[1])] == [
        ("val2014/a.jpg", ("one", "two")), ("val2014/b.jpg", ("three",))
    ]  # fmt: skip
    nocaps = [{"image": "val2014/a.jpg", "caption": ["one"], "img_id": 4}]
    reader = CaptionList((write_json(tmp_path / "nocaps_val.json", nocaps),), (str(tmp_path),)).open()
    assert reader[0].fields == {"image_id": 4}
    assert len(CaptionList((first, second), (str(tmp_path),)).open()) == 6


def test_mistakes(tmp_path):
    write_pictures(tmp_path, ["a.jpg"])
    path = write_json(
        tmp_path / "l.json",
        [{"image": "a.jpg", "caption": []}, {"image": "a.jpg", "caption": ["x"]}, {"image": "b.jpg", "caption": ""}],
    )
    with pytest.raises(InputError) as raised:
        CaptionList((path,), (str(tmp_path),)).open()
    for told in (
        "1 pictures without a caption: a.jpg", "1 ids that occur more than once: a.jpg",
        "1 pictures are missing: b.jpg",
        "1 elements whose 'caption' is no text or empty: l.json:2",
    ):  # fmt: skip
        assert told in str(raised.value)
    path = write_json(tmp_path / "k.json", karpathy(["train"]))
    with pytest.raises(InputError, match="is Karpathy's form of captions"):
        CaptionList((path,), (str(tmp_path),)).open()
    path = write_json(tmp_path / "m.json", [{"image": "a.jpg", "caption": "x"}, {"image": "a.jpg"}])
    with pytest.raises(InputError, match="is damaged: element 1 has no 'caption'"):
        CaptionList((path,), (str(tmp_path),)).open()
