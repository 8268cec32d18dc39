import hashlib
import re

import numpy as np
import pytest

from vlmax.data.sources import shapes_text
from vlmax.data.sources.shapes import Shapes, class_names, render, templates
from vlmax.data.sources.shapes_render import INSIDE, coverage
from vlmax.data.sources.shapes_scene import BACKGROUNDS, COLORS, SHAPES, SIZES, is_unseen
from vlmax.errors import InputError

ALL_KINDS = ("single", "pair", "group", "several")


def scenes(split, count=600, **options):
    source = Shapes(split=split, **options)
    return [source.scene(i) for i in range(count)]


def test_train_never_shows_an_unseen_pair_but_every_word_of_it():
    things = [o for s in scenes("train", 4000, kinds=ALL_KINDS, max_objects=9) for o in s.objects]
    assert not any(is_unseen(o.color, o.shape) for o in things)
    assert {o.color for o in things} == set(COLORS)
    assert {o.shape for o in things} == set(SHAPES)
    assert len({(o.color, o.shape) for o in things}) == 56


def test_every_test_scene_begins_with_an_unseen_pair():
    firsts = [s.objects[0] for s in scenes("test", kinds=ALL_KINDS)]
    assert all(is_unseen(o.color, o.shape) for o in firsts)
    assert len({(o.color, o.shape) for o in firsts}) == 8


def test_objects_lie_inside_and_do_not_overlap():
    for size in (24, 32, 64, 100):
        for scene in scenes("train", 300, kinds=ALL_KINDS, max_objects=9, size=size):
            boxes = [(o.x - o.radius, o.y - o.radius, o.x + o.radius, o.y + o.radius) for o in scene.objects]
            assert all(x >= 0 and y >= 0 and right <= size and low <= size for x, y, right, low in boxes)
            for i, a in enumerate(boxes):
                for b in boxes[i + 1 :]:
                    shared = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                    assert min(shared) <= max(1, size // 32), (scene, shared)


def objects_said(caption):
    """(count, size or None, color, shape) of every object phrase, read back from a caption."""
    numbers = "|".join(["a", "an", *shapes_text.NUMBERS])
    plurals = {shapes_text.plural(s): s for s in SHAPES}
    pattern = rf"\b({numbers}) (?:({'|'.join(SIZES)}) )?({'|'.join(COLORS)}) ({'|'.join([*plurals, *SHAPES])})\b"
    found = re.findall(pattern, caption)
    count = {"a": 1, "an": 1, **{n: i for i, n in enumerate(shapes_text.NUMBERS)}}
    return [(count[n], size or None, color, plurals.get(shape, shape)) for n, size, color, shape in found]


@pytest.mark.parametrize("size", [32, 64])
def test_every_caption_is_true_word_by_word(size):
    for scene in scenes("test", 500, kinds=ALL_KINDS, max_objects=6, size=size):
        full = shapes_text.full_captions(scene)
        for caption in full + shapes_text.loose_captions(scene):
            said = objects_said(caption)
            assert said
            for count, thing_size, color, shape in said:
                alike = [
                    o for o in scene.objects if (o.color, o.shape) == (color, shape) and thing_size in (None, o.size)
                ]
                assert len(alike) == count, (caption, scene)
            assert sum(count for count, *_ in said) == len(scene.objects)
            background = re.search(r"a (\w+) background", caption)
            if caption in full:
                assert background
            assert background is None or background[1] == scene.background
            placed = r"(\w+) (\w+) at the ((?:top|bottom)? ?(?:left|right|center|top|bottom)?)"
            for color, shape, place in re.findall(placed, caption):
                thing = next(o for o in scene.objects if (o.color, o.shape) == (color, shape))
                assert place_of(thing, size) == place.strip(), (caption, scene)
            relation = re.search(r"(left of|right of|above|below)", caption)
            if relation:
                first, second = (next(o for o in scene.objects if (o.color, o.shape) == s[2:]) for s in said)
                dx, dy = first.x - second.x, first.y - second.y
                truth = {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}
                assert truth[relation[1]], (caption, scene)
                assert (abs(dx) > abs(dy)) == (relation[1] in ("left of", "right of"))


def place_of(thing, size):
    column = "left" if thing.x < size / 3 else "right" if thing.x >= size * 2 / 3 else ""
    row = "top" if thing.y < size / 3 else "bottom" if thing.y >= size * 2 / 3 else ""
    return f"{row} {column}".strip() or "center"


def test_words_do_not_depend_on_image_size_and_jitter():
    small, large = scenes("train", 500, size=24, jitter=0.0), scenes("train", 500, size=96)
    assert [shapes_text.full_captions(s) for s in small] == [shapes_text.full_captions(s) for s in large]


def test_the_object_is_where_the_caption_says_and_has_its_color():
    for index in range(100):
        source = Shapes(kinds=("single",))
        scene, image = source.scene(index), source.open()[index].image
        thing = scene.objects[0]
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        background = image[0 if thing.y > 32 else -1, 0 if thing.x > 32 else -1]
        assert abs(background.astype(int) - BACKGROUNDS[scene.background]).max() <= 14
        different = abs(image.astype(int) - background).max(-1) > 40
        rows, columns = np.nonzero(different)
        assert abs(rows.mean() - thing.y) < thing.radius / 2
        assert abs(columns.mean() - thing.x) < thing.radius / 2
        middle = np.median(image[different], axis=0)
        nearest = min(COLORS, key=lambda name: np.abs(middle - COLORS[name]).sum())
        assert nearest == thing.color


def test_shapes_look_different():
    masks = {shape: coverage(shape, 7)[:, :, 0].astype(int) for shape in INSIDE}
    assert set(masks) == set(SHAPES)
    for a in SHAPES:
        assert masks[a].max() == 256 or a == "ring"
        for b in SHAPES[SHAPES.index(a) + 1 :]:
            assert np.abs(masks[a] - masks[b]).sum() > 0.15 * 256 * 49, (a, b)


def test_an_example_is_a_function_of_its_index():
    source = Shapes(split="test", kinds=ALL_KINDS)
    one, two = source.open(), source.open()
    for index in (0, 7, 999_999, 3):
        a, b = one[index], two[index]
        assert (a.key, a.texts) == (b.key, b.texts)
        assert np.array_equal(a.image, b.image)
    assert one[np.int64(7)].key == one[7].key
    assert np.array_equal(one[np.int64(7)].image, one[7].image)
    assert one[1].texts != Shapes(split="test", kinds=ALL_KINDS, seed=1).open()[1].texts
    longer = Shapes(split="test", kinds=ALL_KINDS, count=2_000_000).open()
    assert longer[5].key == one[5].key
    assert longer[5].texts == one[5].texts


def test_pixels_and_words_are_the_same_on_every_platform():
    reader = Shapes(kinds=ALL_KINDS, max_objects=9).open()
    hashed = hashlib.sha256()
    for index in range(200):
        hashed.update(reader[index].image.tobytes() + "|".join(reader[index].texts).encode())
    assert hashed.hexdigest()[:16] == "7284fc91c601be4b"


def test_distinct_captions_for_retrieval():
    reader = Shapes(split="test", count=600, distinct=True, captions="full").open()
    assert len(reader) == 600
    examples = [reader[i] for i in range(600)]
    assert len({e.texts[0] for e in examples}) == 600
    assert len({e.key for e in examples}) == 600
    assert len({text for e in examples for text in e.texts}) == sum(len(e.texts) for e in examples)
    with pytest.raises(InputError, match="only 432 different"):
        Shapes(split="test", count=500, kinds=("single",), distinct=True).open()


def test_questions_have_true_answers():
    for scene in scenes("test", 400, kinds=ALL_KINDS, max_objects=6):
        things = scene.objects
        for kind, question, answer in shapes_text.questions(scene):
            if question == "how many objects are there?":
                assert answer == shapes_text.NUMBERS[len(things)]
            elif kind == "color" and "background" not in question:
                assert {o.color for o in things if o.shape in question} == {answer}
            elif kind == "shape":
                assert {o.shape for o in things if f" {o.color}?" in question} == {answer}
            elif question.startswith("is there"):
                ((_, _, color, shape),) = objects_said(question)
                assert ((color, shape) in {(o.color, o.shape) for o in things}) == (answer == "yes")
            elif kind == "yes/no":
                asked = r"is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?"
                a, relation, b = re.match(asked, question).groups()
                first, second = ({f"{o.color} {o.shape}": o for o in things}[name] for name in (a, b))
                dx, dy = first.x - second.x, first.y - second.y
                truth = {"left of": dx < -9, "right of": dx > 9, "above": dy < -9, "below": dy > 9}[relation]
                assert truth == (answer == "yes"), (question, scene)


def test_yes_and_no_are_balanced():
    answers = [a for s in scenes("test", 2000) for kind, _, a in shapes_text.questions(s) if kind == "yes/no"]
    assert 0.45 < answers.count("yes") / len(answers) < 0.55


def test_classes_templates_and_fields():
    names = class_names()
    assert len(set(names)) == 64
    assert {"a red circle", "an orange star"} <= set(names)
    assert all(t.count("{}") == 1 for t in templates())
    example = Shapes(split="test", kinds=("single",)).open()[0]
    assert example.fields["class"] in names
    assert example.fields["class"] in example.texts
    assert set(example.fields) == {"class", "kind", "scene", "questions", "conversation", "group"}
    assert dict(example.fields)["conversation"][1] == ("assistant", example.texts[0])
    with pytest.raises(KeyError):
        example.fields["nothing"]


def test_every_text_holds_every_word():
    words = {w for text in shapes_text.every_text() for w in re.findall(r"\w+", text)}
    assert len(words) < 80
    for scene in scenes("test", 500, kinds=ALL_KINDS, max_objects=9, seed=5):
        for text in shapes_text.full_captions(scene) + tuple(t for _, t in shapes_text.conversation(scene)):
            assert set(re.findall(r"\w+", text)) <= words


def test_wrong_fields_are_explained():
    for wrong in ({"count": 0}, {"size": 8}, {"max_objects": 2}, {"kinds": ()}, {"jitter": 1.5}):
        with pytest.raises(InputError, match="Shapes"):
            Shapes(**wrong).open()
    with pytest.raises(IndexError):
        Shapes(count=3).open()[3]


def test_without_jitter_equal_scenes_look_equal():
    source = Shapes(kinds=("single",), jitter=0.0)
    reader, seen = source.open(), {}
    for index in range(3000):
        example = reader[index]
        pixels = seen.setdefault(example.texts[0], example.image)
        assert np.array_equal(pixels, example.image)
    assert len(seen) < 2000


def test_tints_differ_between_images_of_one_scene():
    scene = Shapes(kinds=("single",)).scene(0)
    assert not np.array_equal(render(scene, 0, 0), render(scene, 0, 1))
