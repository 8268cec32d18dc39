import pytest

from tests.data.sources.annotation_files import write_json, write_pictures
from vlmax.data.sources.visual_genome import VisualGenome, VisualGenomeQuestions
from vlmax.errors import InputError


def test_phrases_and_questions_of_pictures_in_two_folders(tmp_path):
    images = write_pictures(tmp_path, ["VG_100K/1.jpg", "VG_100K_2/2.jpg", "VG_100K_2/3.jpg"])
    regions = [
        {"id": i, "regions": [{"region_id": n, "phrase": f"phrase {n} ", "x": 0} for n in range(i)]} for i in (1, 2)
    ]
    regions += [{"id": 3, "regions": [{"region_id": 9, "phrase": " "}]}]
    asked = {"question": "What?", "answer": "A dog."}
    questions = [{"id": i, "qas": [asked | {"qa_id": i * 10 + n} for n in (0, 1)]} for i in (1, 2)]
    questions[0]["qas"][1]["answer"] = ""
    places = (f"{tmp_path}/VG_100K", f"{tmp_path}/VG_100K_2")
    reader = VisualGenome(write_json(tmp_path / "region_descriptions.json", regions), places).open()
    assert [(reader[i].key, reader[i].texts) for i in range(len(reader))] == [
        ("1", ("phrase 0",)), ("2", ("phrase 0", "phrase 1"))
    ]  # fmt: skip
    assert reader[1].image == images["VG_100K_2/2.jpg"] and reader[1].fields == {"image_id": 2}
    reader = VisualGenomeQuestions(write_json(tmp_path / "question_answers.json", questions), places).open()
    assert [reader[i].key for i in range(len(reader))] == ["10", "20", "21"]
    assert reader[1].fields == {
        "question": "What?", "question_id": 20, "image_id": 2, "answer": "A dog.", "answers": ["A dog."],
        "answer_weight": 0.2,
    }  # fmt: skip
    with pytest.raises(
        InputError, match=r"is Visual Genome's questions .* and `regions` must name Visual Genome's reg"
    ):
        VisualGenome(f"{tmp_path}/question_answers.json", places).open()
    with pytest.raises(InputError, match=r"pictures are missing: 1.jpg"):
        VisualGenome(f"{tmp_path}/region_descriptions.json", places[1:]).open()


def test_damaged_questions(tmp_path):
    write_pictures(tmp_path, ["1.jpg"])
    asked = [{"id": 1, "qas": [{"question": "What?", "answer": "A dog."}, 3, {"qa_id": 2, "question": "Who?"}]}]
    path = write_json(tmp_path / "question_answers.json", asked)
    with pytest.raises(InputError, match="2 pictures with a question that has no `qa_id`: 1, 1; change `questions`"):
        VisualGenomeQuestions(path, (str(tmp_path),)).open()
