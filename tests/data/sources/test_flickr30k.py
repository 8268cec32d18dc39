import pytest

from tests.data.sources.annotation_files import write_pictures
from vlmax.data.sources.flickr30k import Flickr30k
from vlmax.errors import InputError


def token_file(folder, lines):
    path = folder / "results_20130124.token"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_captions_in_their_order_and_a_split(tmp_path):
    images = write_pictures(tmp_path / "images", ["10.jpg", "11.jpg", "12.jpg"])
    lines = [f"{p}.jpg#{n}\tA man {n} at {p} é ." for p in (10, 11, 12) for n in (1, 0, 2)]
    path = token_file(tmp_path, lines)
    reader = Flickr30k(path, (f"{tmp_path}/images",)).open()
    assert len(reader) == 3 and reader[1].image == images["11.jpg"] and reader[1].key == "11.jpg"
    assert reader[1].texts == tuple(f"A man {n} at 11 é ." for n in range(3)) and reader[1].fields == {"image_id": "11"}
    (tmp_path / "test.txt").write_text("12\n10\n")
    reader = Flickr30k(path, (f"{tmp_path}/images",), only=f"{tmp_path}/test.txt").open()
    assert [reader[i].key for i in range(2)] == ["12.jpg", "10.jpg"]


def test_mistakes(tmp_path):
    write_pictures(tmp_path, ["1.jpg"])
    (tmp_path / "test.txt").write_text("1\n7\n")
    path = token_file(tmp_path, ["1.jpg#0\ta", "1.jpg#0\tb", "1.jpg#1\t ", "2.jpg#0\tc"])
    with pytest.raises(InputError) as raised:
        Flickr30k(path, (str(tmp_path),)).open()
    for told in ("1 ids of captions that occur more than once: 1.jpg#0", "1 empty captions: 1.jpg#1", "missing: 2.jpg"):
        assert told in str(raised.value)
    path = token_file(tmp_path, ["1.jpg#0\ta"])
    with pytest.raises(InputError, match=r"1 pictures without a caption: 7.jpg; change `only`"):
        Flickr30k(path, (str(tmp_path),), only=f"{tmp_path}/test.txt").open()
    path = token_file(tmp_path, ["1.jpg#0\ta", "image_name| comment_number| comment"])
    with pytest.raises(InputError, match=r"line 2 of .* must be `1000092795.jpg#0`, a tab, a caption"):
        Flickr30k(path, (str(tmp_path),)).open()
