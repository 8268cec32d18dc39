"""From texts to packed rows: what is predicted where, what is cut, and that a row is a function of its place."""

import dataclasses
import pickle
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.stand_ins import Letters, Texts
from vlmax.data.example import BadRecord, Example, Packs, Preprocess
from vlmax.data.pipeline import Data, Weighted, differences, host_batches
from vlmax.data.texts import IGNORED, PackedPairs, PackedText
from vlmax.errors import InputError
from vlmax.objectives import language_device

TEXT = PackedText(Letters(), length=24, documents=3)
PAIRS = PackedPairs(Letters(), inputs=12, length=14, documents=3)
BOTH = pytest.mark.parametrize("preprocess", [TEXT, PAIRS], ids=["text", "pairs"])
WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=40)


def rng(seed=0):
    return np.random.default_rng(seed)


def example(text):
    return Texts((text,))[0]


def row(preprocess, *texts, seed=0):
    return preprocess.pack([preprocess.document(example(t), rng(seed + i)) for i, t in enumerate(texts)])


def documents(found, ids, *names):
    """The parts of a row that belong to each document, as lists."""
    count = int(found[ids].max())
    return [[found[name][found[ids] == i].tolist() for name in names] for i in range(1, count + 1)]


@BOTH
def test_a_row_is_what_is_declared(preprocess):
    assert isinstance(preprocess, Packs) and isinstance(preprocess, Preprocess)
    declared = preprocess.features()
    for found in (row(preprocess, "abc", "de", "f"), preprocess(example("abc"), rng())):
        assert {name for name in found if "/" not in name} == declared.keys()
        for name, feature in declared.items():
            assert found[name].shape == feature.shape and found[name].dtype == feature.dtype
    assert pickle.loads(pickle.dumps(preprocess))(example("abc"), rng()).keys() == found.keys()


def test_the_ignored_label_is_that_of_the_loss():
    assert IGNORED == language_device.IGNORED


# One stream of text.


def test_every_place_of_a_document_predicts_the_token_after_it():
    found = row(TEXT, "abc", "de")
    assert found["tokens"].tolist() == [1, 3, 4, 5, 1, 6, 7] + [0] * 17
    assert found["labels"].tolist() == [3, 4, 5, 2, 6, 7, 2] + [IGNORED] * 17
    assert found["segments"].tolist() == [1] * 4 + [2] * 3 + [0] * 17
    bare = dataclasses.replace(TEXT, tokenizer=Letters(bos=None, eos=None))
    found = row(bare, "abc", "de")
    assert found["tokens"][:4].tolist() == [3, 4, 6, 0] and found["labels"][:4].tolist() == [4, 5, 7, IGNORED]


def test_answers_alone_are_learned_with_their_end():
    answers = dataclasses.replace(TEXT, learn="answer")
    found = row(answers, "abcd", "efg")
    assert found["tokens"][:9].tolist() == [1, 3, 4, 5, 6, 1, 7, 8, 9]
    assert found["labels"][:9].tolist() == [IGNORED, IGNORED, 5, 6, 2, IGNORED, IGNORED, 9, 2]
    bare = dataclasses.replace(answers, tokenizer=Letters(bos=None))
    assert row(bare, "abcd")["labels"][:4].tolist() == [IGNORED, 5, 6, 2]
    short = dataclasses.replace(answers, length=3)  # the prompt gives way, the answer stays whole
    found = row(short, "abcd")
    assert found["tokens"].tolist() == [4, 5, 6] and found["labels"].tolist() == [5, 6, 2]
    assert found["count/truncated"] == 1


def test_no_prompt_at_all_leaves_every_token_of_the_answer():
    bare = dataclasses.replace(TEXT, tokenizer=Letters(bos=None), learn="answer")
    found = bare(Example("k", None, (), {"prompt": "", "answer": "abc"}), rng())
    assert found["labels"][:4].tolist() == [4, 5, 2, IGNORED]


def test_a_cut_document_still_predicts_what_it_would_go_on_with():
    found = row(dataclasses.replace(TEXT, length=6), "abc", "def", "gh")
    assert found["tokens"].tolist() == [1, 3, 4, 5, 1, 6] and found["labels"].tolist() == [3, 4, 5, 2, 6, 7]
    assert (found["count/cut"], found["count/left_out"], found["count/truncated"]) == (1, 1, 0)


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.integers(1, 30))
def test_every_document_of_a_row_is_a_piece_of_its_text(texts, length):
    found = row(dataclasses.replace(TEXT, length=length), *texts)
    packed = documents(found, "segments", "tokens", "labels")
    for text, (tokens, labels) in zip(texts, packed, strict=False):
        whole = [1, *Letters().encode(text), 2]
        start = next(i for i in range(len(whole)) if whole[i : i + len(tokens)] == tokens)
        assert any(whole[i + 1 : i + 1 + len(labels)] == labels for i in range(start, len(whole)))
        assert tokens[1:] == labels[:-1]
    assert found["count/left_out"] == len(texts) - len(packed)


def test_a_text_longer_than_a_row_gives_pieces_from_everywhere():
    short = dataclasses.replace(TEXT, length=4)
    alphabet = example(string.ascii_lowercase)
    starts = {int(short(alphabet, rng(i))["tokens"][0]) for i in range(400)}
    assert starts == {1, *range(3, 26)}  # from the mark of the beginning to four letters before the end
    assert short(alphabet, rng())["count/truncated"] == 1


# Pairs.


def test_a_pair_is_read_and_written_with_its_ends():
    answers = dataclasses.replace(PAIRS, learn="answer")
    found = row(answers, "abcde", "fgh")
    assert found["inputs"].tolist() == [3, 4, 2, 8, 9, 2] + [0] * 6
    assert found["input_segments"].tolist() == [1] * 3 + [2] * 3 + [0] * 6
    assert found["labels"].tolist() == [5, 6, 7, 2, 10, 2] + [IGNORED] * 8
    assert found["targets"].tolist() == [0, 5, 6, 7, 0, 10] + [0] * 8
    assert found["target_segments"].tolist() == [1] * 4 + [2] * 2 + [0] * 8


def test_a_text_is_parted_at_every_token():
    cuts = {int((PAIRS(example("abcdef"), rng(i))["inputs"] > 2).sum()) for i in range(200)}
    assert cuts == set(range(6))  # at least one token is left to write


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.integers(2, 30), st.integers(2, 30), st.integers(0, 9))
def test_both_parts_of_a_pair_are_one_piece_of_its_text(texts, inputs, length, seed):
    found = row(dataclasses.replace(PAIRS, inputs=inputs, length=length), *texts, seed=seed)
    read = documents(found, "input_segments", "inputs")
    written = documents(found, "target_segments", "targets", "labels")
    assert len(read) == len(written) >= 1
    assert found["count/left_out"] == len(texts) - len(read)
    for number, (text, (first,), (targets, labels)) in enumerate(zip(texts, read, written, strict=False)):
        assert first[-1] == 2 and targets == [0, *labels[:-1]]
        cut = labels[-1] != 2
        assert not cut or (number == len(read) - 1 and found["count/cut"] == 1)
        piece = first[:-1] + labels[: None if cut else -1]
        whole = Letters().encode(text)
        assert any(whole[i : i + len(piece)] == piece for i in range(len(whole) - len(piece) + 1))
        if len(whole) <= min(inputs, length) - 1 and not cut:
            assert piece == whole  # what fits is used whole


def test_a_row_of_pairs_ends_before_an_input_that_does_not_fit():
    answers = dataclasses.replace(PAIRS, inputs=5, learn="answer")
    found = row(answers, "abc", "def", "gh" + "i" * 3)
    assert found["input_segments"].tolist() == [1, 1, 1, 0, 0] and found["target_segments"].max() == 1
    assert found["count/left_out"] == 2 and found["count/cut"] == 0


# What cannot be used.


@BOTH
def test_a_record_without_a_text_is_damaged(preprocess):
    for texts in ((), ("",), ("123",)):
        with pytest.raises(BadRecord, match="no text"):
            dataclasses.replace(preprocess, tokenizer=Letters(bos=None))(Example("k", None, texts), rng())
    answers = dataclasses.replace(preprocess, learn="answer")
    with pytest.raises(BadRecord, match="no answer"):
        answers(Example("k", None, (), {"prompt": "a", "answer": ""}), rng())
    with pytest.raises(InputError, match=r"record 'k'.*no texts in the fields prompt and answer, but the field"):
        answers(Example("k", None, (), {"answer": "a"}), rng())


@BOTH
def test_sizes_and_marks_that_do_not_fit_are_told(preprocess):
    with pytest.raises(InputError, match=r"data.preprocess.documents is 0; it must be at least 1"):
        dataclasses.replace(preprocess, documents=0).features()
    with pytest.raises(InputError, match=r"data.preprocess.length is 0"):
        dataclasses.replace(preprocess, length=0).features()
    with pytest.raises(InputError, match=r"data.preprocess.inputs is 1; it must be at least 2"):
        dataclasses.replace(PAIRS, inputs=1).features()
    with pytest.raises(InputError, match="no mark of the end"):
        dataclasses.replace(PAIRS, tokenizer=Letters(eos=None)).features()


# In the pipeline.

LETTERS = tuple(letter * (2 + i % 7) for i, letter in enumerate(string.ascii_lowercase[:24]))
DATA = Data((Weighted(Texts(LETTERS)),), dataclasses.replace(TEXT, length=27), batch_size=4)


@BOTH
def test_a_row_is_a_function_of_step_and_row(preprocess):
    data = dataclasses.replace(DATA, preprocess=preprocess)
    for step in (0, 5):
        expected = host_batches(data, range(4), seed=3)[step].arrays
        for r in range(4):
            alone = host_batches(data, [r], seed=3, start_step=step)[0].arrays
            for name, rows in alone.items():
                np.testing.assert_array_equal(rows[0], expected[name][r], err_msg=f"{name} {step} {r}")
    other = host_batches(data, range(4), seed=4)[0].arrays
    first = next(iter(preprocess.features()))
    assert not np.array_equal(other[first], host_batches(data, range(4), seed=3)[0].arrays[first])


def test_an_epoch_reads_every_document_once_and_the_batch_knows_all_of_them():
    batches = [host_batches(DATA, range(4), seed=0)[step] for step in range(2)]
    keys = [key for b in batches for key in b.info.keys]
    assert sorted(int(key) for _, key in keys) == list(range(24))
    assert all(b.info.per_source == {"texts": 12} and len(b.info.keys) == 12 for b in batches)
    for batch in batches:
        for r in range(4):
            inside = documents({n: a[r] for n, a in batch.arrays.items()}, "segments", "labels")
            read = [LETTERS[int(key)] for _, key in batch.info.keys[3 * r : 3 * r + 3]]
            assert [Letters().decode(labels) for (labels,) in inside] == read[: len(inside)]
        hashes = batch.arrays["key_hash"]
        assert hashes.shape == (4, 2) and len({tuple(h) for h in hashes.tolist()}) == 4


def test_a_damaged_document_is_replaced_by_another_and_the_rest_of_its_row_stays():
    damaged = Texts(LETTERS, damaged=(7,))
    data = dataclasses.replace(DATA, sources=(Weighted(damaged),))
    sound, mended = (host_batches(d, range(4), seed=0) for d in (DATA, data))
    changed = 0
    for step in range(2):
        found = mended[step].info
        changed += len(found.damaged)
        for before, after in zip(sound[step].info.keys, found.keys, strict=True):
            assert after == before or (before == ("texts", "7") and after != before)
    assert changed >= 1  # a substitute may be damaged, too


def test_a_resumed_run_must_pack_as_many_documents():
    saved, now = {"documents": 3}, {"documents": 4}
    assert differences(saved, now) == ["data.preprocess.documents: 3 when saved, 4 now"]
