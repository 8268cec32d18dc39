"""Stages: parts of a system from the runs of earlier ones, and what is said where a checkpoint does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny, tiny_blip2, tiny_text
from tests.interop.models import random_arrays
from tests.interop.test_trained import arrays_of, fresh, save
from tests.tiny_blip2 import NO_TEXT, QFORMER, STAGE_1, SYSTEMS, stage_2
from vlmax.errors import InputError
from vlmax.interop.exporting import export
from vlmax.interop.loading import open_model
from vlmax.interop.pretrained import Pretrained
from vlmax.models.connectors.qformer import ALL_BUT_TEXT, TEXT_BRANCH, TEXT_READING, TEXT_WRITING
from vlmax.models.decoders.bert import BERT
from vlmax.models.layers.embeddings import resize_positions
from vlmax.training import patterns

QUERY_MLP = ((r"(.*)/query_(mlp.*)", r"\1/\2"),)
NO_BERT = ("query_tokens", "context_norm/.*", ".*/cross_layers/.*")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of runs: of a CLIP, the first stage, an OPT, and the second stage; with their states."""
    made = {}
    experiments = {
        "clip": dataclasses.replace(tiny.experiment(), seed=3),
        "stage_1": tiny_blip2.experiment(STAGE_1, name="blip2_stage1_tiny", seed=4, frozen_dtype="bfloat16"),
        "opt": dataclasses.replace(tiny_text.experiment("opt"), name="lm_opt", seed=5),
        "stage_2": tiny_blip2.experiment(SYSTEMS["opt"], name="blip2_stage2_tiny", seed=6),
    }
    for name, experiment in experiments.items():
        folder = tmp_path_factory.mktemp(name)
        state, _ = fresh(experiment)
        save(folder, experiment, state)
        made[name] = folder, arrays_of(state)
    return made


def started(system, *init):
    return arrays_of(fresh(tiny_blip2.experiment(system, init=init))[0])


def same(found, wanted):
    assert found.keys() == wanted.keys() and found
    for path, array in wanted.items():
        assert np.array_equal(np.asarray(found[path], np.float32), np.asarray(array, np.float32)), path


def under(arrays, part):
    return {path.removeprefix(f"{part}/"): x for path, x in arrays.items() if path.startswith(f"{part}/")}


def test_the_second_stage_starts_from_the_first_and_a_language_model(runs):
    (first, stage_1), (language, opt) = runs["stage_1"], runs["opt"]
    found = started(
        SYSTEMS["opt"],
        Pretrained(str(first), "image", take="image"),
        Pretrained(str(first), "connector", take="qformer", leave=TEXT_BRANCH),
        Pretrained(str(language), "text"),
    )
    same(under(found, "image"), under(stage_1, "image"))
    same(under(found, "text"), opt)
    former = under(stage_1, "qformer")
    same(under(found, "connector"), {path: former[path] for path in under(found, "connector")})
    fresh_ones = arrays_of(fresh(tiny_blip2.experiment(SYSTEMS["opt"]))[0])
    same(under(found, "projection"), under(fresh_ones, "projection"))


def test_the_first_stage_starts_from_the_encoder_of_a_clip(runs):
    found = started(STAGE_1, Pretrained(str(runs["clip"][0]), "image", take="image"))
    same(under(found, "image"), under(runs["clip"][1], "image"))


def test_the_statistics_of_a_resnet_come_along(tmp_path):
    clip = tiny.resnet_clip()
    features = tiny.TinyFeatures(image=clip.image.image)
    experiment = tiny.with_data(tiny.experiment(system=clip), preprocess=features)
    state, _ = fresh(experiment)
    state = dataclasses.replace(state, carried=jax.tree.map(lambda x: x + 0.5, state.carried))
    save(tmp_path, experiment, state)
    former = dataclasses.replace(STAGE_1.qformer, cross_width=clip.image.width)
    system = dataclasses.replace(STAGE_1, image=clip.image, qformer=former)
    found = under(started(system, Pretrained(str(tmp_path), "image", take="image")), "image")
    assert sum(path.endswith("/mean") for path in found) > 10
    same(found, under(arrays_of(state), "image"))


def test_a_text_branch_joins_a_second_stage_s_queries(runs):
    (first, stage_1), (second, stage_2_arrays) = runs["stage_1"], runs["stage_2"]
    system = stage_2("opt", connector=dataclasses.replace(QFORMER, predicts=False), instruction=5)
    found = under(
        started(
            system,
            Pretrained(str(second), "connector", take="connector", fresh=TEXT_READING),
            Pretrained(
                str(first), "connector", take="qformer", fresh=(ALL_BUT_TEXT,), leave=(ALL_BUT_TEXT, *TEXT_WRITING)
            ),
        ),
        "connector",
    )
    reading = patterns.union(TEXT_READING, found, "text")
    same({path: found[path] for path in reading}, {path: under(stage_1, "qformer")[path] for path in reading})
    others = found.keys() - reading
    same({path: found[path] for path in others}, {p: under(stage_2_arrays, "connector")[p] for p in others})


def test_all_systems_can_be_read_from_their_runs(runs):
    opened = open_model(runs["stage_2"][0])
    assert opened.config == SYSTEMS["opt"]
    same(opened.arrays(), runs["stage_2"][1])


# From BERT.


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT of the Q-Former's sizes with two tokens less, as Hugging Face stores it."""
    config = BERT(width=16, depth=4, heads=2, mlp=24, vocab=30, context=8, norm_epsilon=1e-6)
    folder = tmp_path_factory.mktemp("bert") / "model"
    export(folder, config, random_arrays(config))
    return folder, random_arrays(config)


def from_bert(folder, **changes):
    options = {"fresh": NO_BERT, "copies": QUERY_MLP, "leave": ("token_types/.*",)}
    options["grow"] = ("vocabulary/.*", "output_bias")
    return Pretrained(str(folder), "qformer", **{**options, **changes})


def test_a_q_former_begins_as_bert_with_its_feed_forward_parts_twice(bert):
    folder, theirs = bert
    found = under(started(STAGE_1, from_bert(folder)), "qformer")
    before = under(arrays_of(fresh(tiny_blip2.experiment(STAGE_1))[0]), "qformer")
    for path, array in found.items():
        source = path.replace("query_mlp", "mlp")
        if path.startswith(("query_tokens", "context_norm")) or "cross_layers" in path:
            np.testing.assert_array_equal(array, before[path])
        elif path in ("vocabulary/embedding", "output_bias"):
            np.testing.assert_array_equal(array[:30], theirs[path])
            np.testing.assert_array_equal(array[30:], before[path][30:])
        else:
            np.testing.assert_array_equal(array, theirs[source], err_msg=path)


def test_a_step_may_overwrite_both_copies(bert):
    from tests.training.test_step import ONE, on_devices

    def work(run):
        state, _ = run.step(run.init(), jax.device_put(tiny_blip2.batch(STAGE_1, 16), run.batch_sharding))
        return tiny.copied(state.step)

    assert on_devices(tiny_blip2.experiment(STAGE_1, init=(from_bert(bert[0]),)), ONE, work) == 1


def test_a_bert_that_computes_otherwise_is_refused(tmp_path):
    other = BERT(width=16, depth=4, heads=2, mlp=24, vocab=30, context=8, activation="relu", norm_epsilon=1e-12)
    export(tmp_path / "model", other, random_arrays(other))
    with pytest.raises(InputError) as error:
        started(STAGE_1, from_bert(tmp_path / "model"))
    for words in ("activation is 'gelu' in the system's QFormer and 'relu' in the checkpoint's BERT", "norm_epsilon"):
        assert words in str(error.value)


# Encoders of other depths and sizes.


def test_the_first_layers_of_an_encoder_and_another_size_of_images(tmp_path):
    deep = tiny.vit(depth=3)
    arrays = random_arrays(deep)
    export(tmp_path / "model", deep, arrays)
    system = dataclasses.replace(STAGE_1, image=tiny.vit(depth=2, final_norm=False, image=16))
    init = Pretrained(
        str(tmp_path / "model"),
        "image",
        leave=("final_norm/.*",),
        shorten=("transformer/.*",),
        resize=("positions/embedding",),
    )
    found = under(started(system, init), "image")
    for path, array in found.items():
        if path == "positions/embedding":
            expected = resize_positions(arrays[path], (2, 2), (4, 4), 1, antialias=False)
            np.testing.assert_allclose(array, expected, atol=1e-6)
        else:
            np.testing.assert_array_equal(array, arrays[path][: len(array)] if "layers" in path else arrays[path])
    with pytest.raises(InputError, match=r"ViT.depth is 2 in the system and 3 in the checkpoint"):
        started(system, dataclasses.replace(init, shorten=()))


# What does not fit.


def refused(system, *init):
    with pytest.raises(InputError) as error:
        started(system, *init)
    return str(error.value)


def test_a_checkpoint_of_another_stage_says_which_it_is_and_what_is_missing(runs):
    clip, first, second = (str(runs[name][0]) for name in ("clip", "stage_1", "stage_2"))
    told = refused(SYSTEMS["opt"], Pretrained(clip, "connector", take="qformer"))
    for words in ("init[0].take", "lies under 'qformer'", "the run 'tiny' at step 3", "CLIP", "image encoder (image)"):
        assert words in told
    told = refused(STAGE_1, Pretrained(second, "qformer", take="connector"))
    for words in (
        "the part 'qformer' cannot start from",
        "the run 'blip2_stage2_tiny' at step 3, whose system is ImagePrefix",
        "connector (connector)",
        "vocabulary/embedding [32, 16] is not in the checkpoint",
    ):
        assert words in told
    told = refused(SYSTEMS["opt"], Pretrained(first, "connector", take="qformer"))
    for words in ("BLIP2 (BLIP-2's first stage", "output_bias [32] is not in the system", "init[0].leave or init[0]."):
        assert words in told
    told = refused(SYSTEMS["opt"], Pretrained(first, "text"))
    assert "positions/embedding [18, 16] is not in the checkpoint" in told


def test_patterns_that_hit_nothing_are_told(runs):
    first = str(runs["stage_1"][0])
    for field in ("leave", "fresh", "grow", "shorten", "resize"):
        wrong = dataclasses.replace(Pretrained(first, "qformer", take="qformer"), **{field: ("nothing/.*",)})
        assert f"init[0].{field}[0]: the pattern 'nothing/.*' matches the whole of no path" in refused(STAGE_1, wrong)
    wrong = Pretrained(first, "qformer", take="qformer", copies=(("nothing/(.*)", r"\1"),))
    assert "init[0].copies[0]" in refused(STAGE_1, wrong)
    assert "is not a regular expression" in refused(STAGE_1, Pretrained(first, "qformer", "qformer", fresh=("(",)))


def test_a_q_former_of_other_sizes_is_told_field_by_field(runs):
    wide = dataclasses.replace(NO_TEXT, queries=5, activation="relu")
    told = refused(
        dataclasses.replace(SYSTEMS["opt"], connector=wide),
        Pretrained(str(runs["stage_1"][0]), "connector", take="qformer", leave=TEXT_BRANCH),
    )
    for words in ("QFormer.queries is 5 in the system and 3", "QFormer.activation is 'relu'", "query_tokens is [5,"):
        assert words in told


def test_a_run_without_a_checkpoint_is_told(tmp_path: Path):
    told = refused(SYSTEMS["opt"], Pretrained(str(tmp_path / "runs" / "blip2_stage1"), "connector", take="qformer"))
    assert "there is no such folder" in told
