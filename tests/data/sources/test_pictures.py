import pickle
import zipfile

import pytest

from tests.data.sources.annotation_files import write_pictures
from vlmax.data.example import BadRecord
from vlmax.data.sources.pictures import Pictures, Places


def test_the_first_place_that_has_a_picture_is_taken(tmp_path, monkeypatch):
    images = write_pictures(tmp_path, ["a/1.jpg", "b/1.jpg", "b/sub/2.jpg"])
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name in ("3.jpg", "deep/4.jpg", "deep/er/5.jpg", "deeper/6.jpg"):
            archive.writestr(name, name)
    monkeypatch.chdir(tmp_path)
    places = Places(("a", "b", "zip://::c.zip", "zip://deep/::c.zip", "not/there", "zip://x::no.zip"))
    read = pickle.loads(pickle.dumps(Pictures(""))).read
    assert read(places.find("1.jpg")) == images["a/1.jpg"] and read(places.find("sub/2.jpg")) == images["b/sub/2.jpg"]
    for path, name in [
        ("3.jpg", "3.jpg"),
        ("4.jpg", "deep/4.jpg"),
        ("er/5.jpg", "deep/er/5.jpg"),
        ("deeper/6.jpg", "deeper/6.jpg"),
    ]:
        assert read(places.find(path)) == name.encode()
    for path in ("2.jpg", "sub", "7.jpg", "5.jpg", "er/6.jpg", "sub/1.jpg"):
        found = places.find(path)
        assert found is None or path == "sub", path


def test_a_picture_that_is_gone_is_a_damaged_record(tmp_path):
    for path in ("no.jpg", "zip://a::no.zip", "zip://a", ".", "a\0b"):
        with pytest.raises(BadRecord):
            Pictures(str(tmp_path)).read(path)
