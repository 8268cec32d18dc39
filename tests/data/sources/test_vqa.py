import pickle

import pytest

from tests.data.sources.annotation_files import picture_name, vqa_annotations, vqa_questions, write_json, write_pictures
from vlmax.data.sources.vqa import VQA
from vlmax.errors import InputError


def published(folder, questions=range(6), answered=range(6), change=lambda questions, annotations: None):
    asked, told = vqa_questions(questions), vqa_annotations(answered)
    write_pictures(folder, [f"train2014/{picture_name(i)}" for i in range(3)])
    change(asked, told)
    first = write_json(folder / "v2_OpenEnded_mscoco_train2014_questions.json", asked)
    return VQA((first,), (write_json(folder / "v2_mscoco_train2014_annotations.json", told),), (str(folder),))


def test_a_question_has_its_picture_and_the_answers_of_all_annotators(tmp_path):
    source = published(tmp_path)
    reader = pickle.loads(pickle.dumps(source.open()))
    assert len(reader) == 6
    example = reader[5]
    assert (example.key, example.texts) == ("5", ("What is 5?",))
    assert example.image == (tmp_path / "train2014" / picture_name(2)).read_bytes()
    assert example.fields == {
        "question": "What is 5?", "question_id": 5, "image_id": 2, "answers": ["answer 5"] * 6 + ["yes"] * 3 + ["no"],
        "answer": "answer 5", "question_type": "what is", "answer_type": "other",
    }  # fmt: skip


def test_two_splits_and_a_test_split(tmp_path):
    source = published(tmp_path)
    write_pictures(tmp_path, [f"val2014/{picture_name(5, 'val2014')}", f"test2015/{picture_name(0, 'test2015')}"])
    asked, told = vqa_questions(range(10, 12), "val2014"), vqa_annotations(range(10, 12))
    val = write_json(tmp_path / "val_q.json", asked), write_json(tmp_path / "val_a.json", told)
    both = VQA((*source.questions, val[0]), (*source.annotations, val[1]), source.images).open()
    assert len(both) == 8 and both[7].fields["answer"] == "answer 11"
    assert both[7].image == (tmp_path / "val2014" / picture_name(5, "val2014")).read_bytes()
    test = write_json(tmp_path / "test_q.json", vqa_questions(range(2), "test-dev2015"))
    reader = VQA((test,), (), source.images).open()
    assert reader[1].fields == {"question": "What is 1?", "question_id": 1, "image_id": 0}


def test_answers_that_do_not_fit_the_questions(tmp_path):
    def change(asked, told):
        told["annotations"][1]["answers"] = []
        told["annotations"][2]["image_id"] = 77
        told["annotations"].append(told["annotations"][0])
        asked["questions"].append(asked["questions"][3])

    source = published(tmp_path, range(6), range(5), change)
    (tmp_path / "train2014" / picture_name(1)).unlink()
    with pytest.raises(InputError) as raised:
        source.open()
    for told in (
        "1 questions without answers, or with answers that are no text: 1", "2 questions without answers: 1, 5",
        "1 questions that are answered more than once: 0", "1 questions about another picture than their answers: 2",
        "1 ids that occur more than once: 3", f"3 pictures are missing: train2014/{picture_name(1)}",
    ):  # fmt: skip
        assert told in str(raised.value), told

    told = vqa_annotations(range(6))
    told["annotations"][3]["answers"] = None
    write_json(tmp_path / "v2_mscoco_train2014_annotations.json", told)
    with pytest.raises(InputError, match=r"is damaged: .* has null as 'answers'; change `annotations`"):
        source.open()


def test_files_that_are_mixed_up(tmp_path):
    source = published(tmp_path)
    told = "is the file of VQA questions .* and `annotations` must name the file of VQA annotations"
    with pytest.raises(InputError, match=told):
        VQA(source.questions, source.questions, source.images).open()
    with pytest.raises(InputError, match=r"is the file of VQA annotations .* and `questions` must name the file of"):
        VQA(source.annotations, source.annotations, source.images).open()
    with pytest.raises(InputError, match=r"questions is empty"):
        VQA((), source.annotations, source.images).open()


def test_the_path_of_the_picture(tmp_path):
    source = published(tmp_path)
    write_pictures(tmp_path / "flat", ["0.jpg", "1.jpg", "2.jpg"])
    flat = VQA(source.questions, source.annotations, (f"{tmp_path}/flat",), picture="{image_id}.jpg")
    assert len(flat.open()) == 6
    for picture in ("{other}.jpg", "{image_id:q}", "{"):
        with pytest.raises(InputError, match="makes no path"):
            VQA(source.questions, source.annotations, source.images, picture).open()
    asked = vqa_questions(range(6))
    del asked["data_subtype"]
    path = write_json(tmp_path / "q.json", asked)
    with pytest.raises(InputError, match="has no data_subtype, which `picture` asks for"):
        VQA((path,), source.annotations, source.images).open()
