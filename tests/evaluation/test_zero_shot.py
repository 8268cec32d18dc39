import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation import stand_in
from tests.evaluation.stand_in import Pictures, context, random_pictures
from vlmax.errors import InputError
from vlmax.evaluation.zero_shot import ZeroShot

NAMES = ("bee", "cat-fish", "dog_rose", "elk", "fox", "gnu", "hen")
SPOKEN = ("bee", "cat fish", "dog rose", "elk", "fox", "gnu", "hen")
TEMPLATES = ("{}", "{}s", "a {}!")


def class_features(names, templates):
    each = np.stack([stand_in.text_features([t.replace("{}", n) for t in templates]) for n in names])
    return stand_in.unit(each.mean(1))


def reference(examples, labels, names=SPOKEN, templates=TEMPLATES):
    scores = stand_in.image_features(np.stack([e.image for e in examples])) @ class_features(names, templates).T
    rank = (scores > scores[np.arange(len(labels)), labels][:, None]).sum(1)
    found = {"top1": (rank < 1).mean(), "top5": (rank < 5).mean(), "examples": len(labels)}
    return {f"eval/zero_shot/{name}": value for name, value in found.items()}


@settings(max_examples=6, deadline=None)
@given(count=st.integers(1, 37), seed=st.integers(0, 99))
def test_scores_equal_numpy_for_ragged_sizes(count, seed):
    examples = random_pictures(count, seed, label=lambda i, rng: int(rng.integers(7)))
    evaluation = ZeroShot(Pictures(examples), class_names=SPOKEN, templates=TEMPLATES, batch_size=16)
    wanted = reference(examples, [e.fields["label"] for e in examples])
    for devices in (1, 8):
        assert evaluation.run(context(devices)) == pytest.approx(wanted, abs=1e-12)


def test_labels_as_texts_from_the_source_or_given():
    examples = random_pictures(30, 1, kind=lambda i, rng: NAMES[i % 7])
    wanted = reference(examples, [i % 7 for i in range(30)])
    taken = ZeroShot(Pictures(examples), label="kind", templates=TEMPLATES, batch_size=8)
    given_ = dataclasses.replace(taken, labels=NAMES[::-1], class_names=SPOKEN[::-1])
    assert taken.run(context()) == pytest.approx(wanted)
    assert given_.run(context()) == pytest.approx(wanted)


def test_templates_are_normalised_each_before_the_mean():
    long = class_features(("elk",), ("{}", "{}s"))
    one = stand_in.text_features(["elk", "elks"])
    np.testing.assert_allclose(long[0], stand_in.unit(one[0] + one[1]), rtol=1e-6)


def test_classes_of_one_name_share_their_pictures():
    examples = random_pictures(24, 2, label=lambda i, rng: i % 2)
    evaluation = ZeroShot(Pictures(examples), class_names=("elk", "elk"), batch_size=8)
    assert evaluation.run(context())["eval/zero_shot/top1"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("label", "changes", "message"),
    [
        (9, {}, "'0' has label = 9, which is none of the classes; numbers go from 0 to 6"),
        ("elc", {}, "'0' has label = 'elc', which is none of the classes; did you mean 'elk'"),
        ("elk", {"class_names": ("elk", "elk")}, "more than one class; give `labels` apart"),
        (True, {}, "a label is a text or an integer"),
        (0, {"label": "labels"}, "no field 'labels', which its `label` names; did you mean 'label'"),
        (0, {"class_names": ()}, "holds numbers, which name no class; give its class_names"),
        (0, {"labels": ("a",)}, "7 class_names for 1 labels"),
        (0, {"templates": ("a photo",)}, "each template needs one {} for the class name, unlike"),
        (0, {"templates": ()}, "each template needs one {} for the class name"),
    ],
)
def test_wrong_settings_say_what_to_change(label, changes, message):
    source = Pictures(random_pictures(3, 0, label=lambda i, rng: label))
    evaluation = dataclasses.replace(ZeroShot(source, class_names=SPOKEN, batch_size=8), **changes)
    with pytest.raises(InputError, match=message):
        evaluation.run(context())
