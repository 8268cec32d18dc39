import pytest

from tests.data.sources.annotation_files import coco, karpathy, picture_name, write_json, write_pictures
from vlmax.data.sources.karpathy import Karpathy
from vlmax.errors import InputError

SPLITS = ["test", "train", "restval", "val", "train"]


def test_coco_is_trained_on_train_and_restval(tmp_path):
    path = write_json(tmp_path / "dataset_coco.json", karpathy(SPLITS))
    images = write_pictures(tmp_path, [f"val2014/{picture_name(i, 'val2014')}" for i in range(5)])
    reader = Karpathy(path, (str(tmp_path),)).open()
    assert [reader[i].fields for i in range(len(reader))] == [
        {"image_id": 1001, "split": "train"}, {"image_id": 1002, "split": "restval"},
        {"image_id": 1004, "split": "train"},
    ]  # fmt: skip
    assert reader[0].key == f"val2014/{picture_name(1, 'val2014')}" and reader[0].image == images[reader[0].key]
    assert reader[0].texts == tuple(f"Sentence {n} of 1." for n in range(5))
    assert len(Karpathy(path, (str(tmp_path),), ("test",)).open()) == 1


def test_flickr30k_has_no_restval_and_other_numbers(tmp_path):
    path = write_json(tmp_path / "dataset_flickr30k.json", karpathy(["train", "test", "train"], coco_ids=False))
    write_pictures(tmp_path, ["0.jpg", "1.jpg", "2.jpg"])
    reader = Karpathy(path, (str(tmp_path),), name="flickr30k").open()
    assert [reader[i].fields["image_id"] for i in range(len(reader))] == [0, 2]
    with pytest.raises(InputError, match=r"no picture of the split 'tset' .* did you mean 'test'"):
        Karpathy(path, (str(tmp_path),), ("tset",)).open()


def test_mistakes(tmp_path):
    content = karpathy(SPLITS)
    content["images"][1]["sentences"] = []
    content["images"].append(content["images"][4])
    path = write_json(tmp_path / "dataset_coco.json", content)
    write_pictures(tmp_path, [f"val2014/{picture_name(i, 'val2014')}" for i in (1, 4)])
    with pytest.raises(InputError) as raised:
        Karpathy(path, (str(tmp_path),)).open()
    for told in ("1 pictures without a caption: val2014/", "1 ids that occur more than once", "1 pictures are missing"):
        assert told in str(raised.value)
    content = karpathy(SPLITS)
    content["images"][2]["sentences"] = ["a man", {"raw": None}]
    path = write_json(tmp_path / "dataset_coco.json", content)
    with pytest.raises(InputError, match="2 elements whose 'raw' is no text or empty: val2014/"):
        Karpathy(path, (str(tmp_path),), ("restval",)).open()
    content["images"][2]["sentences"] = None
    path = write_json(tmp_path / "dataset_coco.json", content)
    with pytest.raises(InputError, match="is damaged: element 2, in 'images', has null as 'sentences'"):
        Karpathy(path, (str(tmp_path),)).open()
    other = write_json(tmp_path / "captions.json", coco(range(3)))
    with pytest.raises(InputError, match=r"is COCO's form of captions .* must name Karpathy's form"):
        Karpathy(other, (str(tmp_path),)).open()
