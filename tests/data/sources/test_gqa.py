import pytest

from tests.data.sources.annotation_files import gqa, vqa_questions, write_json, write_pictures
from vlmax.data.sources.gqa import GQA
from vlmax.errors import InputError


def test_a_question_has_one_answer(tmp_path):
    path = write_json(tmp_path / "train_balanced_questions.json", gqa(range(4)))
    images = write_pictures(tmp_path / "images", ["0.jpg", "1.jpg"])
    reader = GQA((path,), (f"{tmp_path}/images",)).open()
    assert len(reader) == 4 and reader[3].image == images["1.jpg"] and reader[3].key == "03"
    assert reader[3].fields == {
        "question": "Is 3 red?", "question_id": "03", "image_id": "1", "types": {"structural": "verify"},
        "answer": "yes", "answers": ["yes"], "full_answer": "Yes, 3 is red.",
    }  # fmt: skip


def test_a_test_split_and_mistakes(tmp_path):
    path = write_json(tmp_path / "q.json", gqa(range(4), answers=False))
    write_pictures(tmp_path, ["0.jpg", "1.jpg"])
    with pytest.raises(
        InputError, match=r"4 questions without an answer \(a test split\? set `answered` to False\): 00"
    ):
        GQA((path,), (str(tmp_path),)).open()
    assert "answer" not in GQA((path,), (str(tmp_path),), answered=False).open()[0].fields
    other = write_json(tmp_path / "v.json", vqa_questions(range(3)))
    with pytest.raises(InputError, match=r"is the file of VQA questions .* must name GQA's questions"):
        GQA((other,), (str(tmp_path),)).open()
    with pytest.raises(InputError, match="ids that occur more than once: 00"):
        GQA((path, write_json(tmp_path / "r.json", gqa(range(1)))), (str(tmp_path),), answered=False).open()
    with pytest.raises(InputError, match=r"1 pictures are missing: 2.jpg"):
        GQA((write_json(tmp_path / "s.json", gqa(range(5))),), (str(tmp_path),)).open()
