import json

import pytest

from tests.shared import shared
from vlmax.errors import InputError
from vlmax.evaluation.prompts import prompts_from_json


def test_reads_clips_prompts():
    path = shared("data", "reference", "clip_imagenet_prompts.json")
    names, templates = prompts_from_json(path, "imagenet_classes", "imagenet_templates")
    assert (len(names), names[0]) == (1000, "tench")
    assert (len(templates), templates[0]) == (80, "a bad photo of a {}.")
    names, templates = prompts_from_json(
        shared("data", "reference", "clip_prompts.json"), "CIFAR10.classes", "CIFAR10.templates"
    )
    assert names[:2] == ("airplane", "automobile") and "a photo of a {}." in templates


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "cannot be read as JSON"),
        ('{"clases": ["a"], "templates": ["{}"]}', "has no 'classes'.*did you mean 'clases'"),
        ('{"classes": "a", "templates": ["{}"]}', "classes: this should be a list of texts, not 'a'"),
        ('{"classes": ["a"], "templates": []}', "templates: this should be a list of texts"),
        ('{"classes": ["a"], "templates": ["{} {}"]}', "needs one {} for the class name"),
        ("[]", "has no 'classes'"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, content, message):
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(InputError, match=message):
        prompts_from_json(tmp_path / "prompts.json")


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        prompts_from_json(tmp_path / "none.json")


def test_plain_keys(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"classes": ["a", "b"], "templates": ["x {}"]}))
    assert prompts_from_json(tmp_path / "p.json") == (("a", "b"), ("x {}",))
