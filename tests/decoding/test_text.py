from __future__ import annotations

import dataclasses

import pytest

from tests.decoding.tiny import MODELS, parameters
from vlmax.data.tokenizers import Tokenizer, train_bpe
from vlmax.decoding.generate import generate
from vlmax.decoding.settings import Generation, Marks
from vlmax.decoding.text import Stream, before_stop, continue_texts, marks_of, prompt_tokens
from vlmax.errors import InputError

TEXTS = ["a red circle", "two", "a small blue star left of it"]
GREEDY = Generation(max_new_tokens=12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    return train_bpe([*TEXTS, "日本語"], 300, path).open()


@pytest.fixture(scope="module")
def built(tokenizer):
    configs = {name: dataclasses.replace(MODELS[name], vocab=tokenizer.vocab_size) for name in ("llama", "t5")}
    return {name: (config.build(), parameters(config)) for name, config in configs.items()}


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_texts_are_those_of_the_tokens(name, built, tokenizer):
    model, params = built[name]
    marks = marks_of(tokenizer)
    assert marks == Marks((tokenizer.eos,), tokenizer.pad_id)
    prompts = [prompt_tokens(tokenizer, text, name == "t5") for text in TEXTS]
    tokens = generate(model, params, prompts, GREEDY, marks).tokens
    assert continue_texts(model, params, tokenizer, TEXTS, GREEDY) == [tokenizer.decode(row) for row in tokens]


@pytest.mark.parametrize("stop", [False, True])
def test_streamed_parts_are_the_text(stop, built, tokenizer):
    model, params = built["llama"]
    settings = GREEDY
    if stop:
        whole = continue_texts(model, params, tokenizer, TEXTS, GREEDY)
        settings = dataclasses.replace(GREEDY, stop=(whole[0][4:6], "never there"))
    parts: list[list[str]] = [[] for _ in TEXTS]
    found = continue_texts(model, params, tokenizer, TEXTS, settings, on_text=lambda i, text: parts[i].append(text))
    assert ["".join(row) for row in parts] == found == continue_texts(model, params, tokenizer, TEXTS, settings)
    assert max(map(len, parts)) > 1
    if stop:
        assert found[0] == whole[0][:4]


def test_prompts_get_their_marks(tokenizer):
    ids = tokenizer.encode("a red circle")
    assert prompt_tokens(tokenizer, "a red circle", False) == [tokenizer.bos, *ids]
    assert prompt_tokens(tokenizer, "a red circle", True) == [*ids, tokenizer.eos]
    one_mark = dataclasses.replace(tokenizer, begin=())  # as GPT-2's
    assert prompt_tokens(one_mark, "a red circle", False) == ids
    assert prompt_tokens(tokenizer, "", False) == [tokenizer.bos]
    with pytest.raises(InputError, match="prompt is empty"):
        prompt_tokens(one_mark, "", False)


def test_every_end_ends_a_text_and_is_no_part_of_it(built, tokenizer):
    model, params = built["llama"]
    prompts = [prompt_tokens(tokenizer, text, False) for text in TEXTS]
    free = generate(model, params, prompts, GREEDY).tokens
    chat = dataclasses.replace(tokenizer, eos=free[0][2], further_ends=(free[0][2], free[1][1]))
    assert marks_of(chat).eos == (free[0][2], free[1][1])
    found = continue_texts(model, params, chat, TEXTS, GREEDY)
    for text, tokens in zip(found, free, strict=True):
        places = [i for i, token in enumerate(tokens) if token in chat.ends]
        assert text == tokenizer.decode(tokens[: min(places, default=len(tokens))])
    assert len(found[1]) < len(tokenizer.decode(free[1]))


def test_a_text_ends_before_the_first_stop_string():
    assert before_stop("one two one", ("two", "one t")) == ""
    assert before_stop("a b c", ("c", "b")) == "a " and before_stop("a", ()) == "a"


def test_halves_wait(tokenizer):
    stream = Stream(tokenizer, ("red!",))
    tokens = tokenizer.encode("日 red circle")
    parts = [stream.add(token) for token in tokens] + [stream.rest()]
    assert "".join(parts) == "日 red circle" and not any("\ufffd" in part for part in parts)
    stream = Stream(tokenizer, ("red!",))
    parts = [stream.add(token) for token in tokenizer.encode("a red!")] + [stream.rest()]
    assert "".join(parts) == stream.text() == "a " and len(parts) > 2
