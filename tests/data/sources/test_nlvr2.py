import pickle

import pytest

from tests.data.sources.annotation_files import nlvr2, write_json, write_lines, write_pictures
from vlmax.data.sources.nlvr2 import NLVR2
from vlmax.errors import InputError


def pictures(folder, pairs, training):
    names = [f"{'train' if training else 'dev'}-{p}-1-img{n}.png" for p in range(pairs) for n in (0, 1)]
    return write_pictures(folder, [f"{int(n.split('-')[1]) % 3}/{n}" if training else n for n in names])


@pytest.mark.parametrize("training", [True, False])
def test_a_statement_has_two_pictures_and_a_label(tmp_path, training):
    path = write_lines(tmp_path / "train.json", nlvr2(4, training))
    images = pictures(tmp_path / "images", 4, training)
    reader = pickle.loads(pickle.dumps(NLVR2((path,), (f"{tmp_path}/images",)).open()))
    assert len(reader) == 8
    left, right = [images[name] for name in images if "-3-1-img" in name]
    example = reader[7]
    assert (example.image, example.fields["second_image"]) == (left, right)
    assert (
        example.texts == ("Statement 1 about 3.",) and example.fields["label"] == 1 and reader[6].fields["label"] == 0
    )
    assert reader[6].fields["pair"] == example.fields["pair"] and reader[6].key != example.key


def test_mistakes(tmp_path):
    rows = nlvr2(3, False)
    rows[0]["label"] = "maybe"
    rows[1]["sentence"] = ""
    rows.append(rows[3])
    path = write_lines(tmp_path / "dev.json", rows)
    pictures(tmp_path, 3, False)
    (tmp_path / "dev-2-1-img1.png").unlink()
    with pytest.raises(InputError) as raised:
        NLVR2((path,), (str(tmp_path),)).open()
    for told in (
        "1 statements whose label is not true or false, or whose identifier is none: dev-0-1-0",
        "1 elements whose 'sentence' is no text or empty: dev-0-1-1", "1 ids that occur more than once: dev-1-1-1",
        "2 pictures are missing: dev-2-1-img1.png",
    ):  # fmt: skip
        assert told in str(raised.value), told
    for content, told in [
        (write_lines(tmp_path / "a.json", [{"a": 1}, {"b": 1}]), "JSON lines of `a`"),
        (write_json(tmp_path / "b.json", [{"image": "a", "caption": "b"}]), "is BLIP's form of captions"),
        (
            write_lines(tmp_path / "c.json", [nlvr2(1, False)[0], {"identifier": "x"}]),
            "damaged: line 2 has no 'sentence'",
        ),
    ]:
        with pytest.raises(InputError, match=told):
            NLVR2((content,), (str(tmp_path),)).open()
