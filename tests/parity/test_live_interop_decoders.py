"""Language models of transformers into our folders and out again."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

import vlmax
from tests.parity.interop import close, logits, randomise, there_and_back
from tests.parity.make_golden_t5 import MODELS as T5
from tests.parity.torch_imports import transformers

SIZES = {
    "vocab_size": 51,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
OPT = {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "ffn_dim": 48}
GPT2 = {"vocab_size": 51, "n_positions": 40, "n_embd": 32, "n_layer": 3, "n_head": 4}
CAUSAL = {
    "llama": ("Llama", SIZES),
    "llama, grouped and tied": ("Llama", {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama 3.1, wide heads": ("Llama", {**SIZES, "num_key_value_heads": 1, "head_dim": 16, "rope_parameters": LLAMA3}),
    "vicuna 16k": (
        "Llama",
        {**SIZES, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "mistral": ("Mistral", {**SIZES, "num_key_value_heads": 2, "sliding_window": 5}),
    "mistral without window": ("Mistral", {**SIZES, "num_key_value_heads": 4, "sliding_window": None}),
    "qwen2": ("Qwen2", {**SIZES, "num_key_value_heads": 2}),
    "qwen2, tied, one layer": (
        "Qwen2",
        {**SIZES, "num_key_value_heads": 4, "tie_word_embeddings": True, "num_hidden_layers": 1},
    ),
    "gpt2": ("GPT2LMHead", GPT2),
    "gpt2, another mlp": ("GPT2LMHead", {**GPT2, "n_inner": 100, "n_layer": 1, "n_head": 1}),
    "opt": ("OPT", OPT),
    "opt 350m": ("OPT", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "opt, one head": ("OPT", {**OPT, "num_attention_heads": 1, "num_hidden_layers": 1}),
}


T5_FORMS = {**T5, "t5 of BLIP-2": {**T5["t5"], "dense_act_fn": "gelu"}}
TIED = "specifies to tie shared.weight to lm_head.weight, but both are present"


def build(kind, fields):
    library = transformers()
    name = kind if kind.endswith("LMHead") else f"{kind}ForCausalLM"
    model_class = getattr(library, name + ("Model" if name.endswith("LMHead") else ""))
    return randomise(model_class(model_class.config_class(**fields)))


@pytest.mark.parametrize("name", CAUSAL)
def test_decoder_only(name, tmp_path):
    model = build(*CAUSAL[name])
    ours, params = there_and_back(model, tmp_path)
    tokens = torch.randint(0, 51, (2, 17))
    with torch.no_grad():
        close(logits(ours, params, tokens.numpy()), model(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_several_files(dtype, tmp_path):
    model = build("Llama", SIZES).to(dtype)
    model.save_pretrained(tmp_path / "several", max_shard_size="10KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 3
    again = type(model).from_pretrained(tmp_path / "several", dtype=dtype)
    there_and_back(again, tmp_path)


@pytest.mark.parametrize("name", T5_FORMS)
def test_t5(name, tmp_path):
    fields = {key: value for key, value in T5_FORMS[name].items() if key not in ("length", "target_length", "batch")}
    model = randomise(transformers().T5ForConditionalGeneration(transformers().T5Config(**fields)))
    untied = not model.config.scale_decoder_outputs
    if untied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    # As of every T5 v1.1: transformers sets its `tie_word_embeddings` to True, whatever the file says.
    ours, params = there_and_back(model, tmp_path, TIED if untied else None)
    read, written = torch.randint(0, model.config.vocab_size, (2, 9)), torch.randint(0, model.config.vocab_size, (2, 5))
    with torch.no_grad():
        close(
            logits(ours, params, read.numpy(), written.numpy()), model(input_ids=read, decoder_input_ids=written).logits
        )


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("BertForMaskedLM", {}),
        ("BertLMHeadModel", {"is_decoder": True}),
        ("BertModel", {}),
        ("BertForMaskedLM", {"hidden_act": "relu", "num_hidden_layers": 1, "type_vocab_size": 3}),
    ],
)
def test_bert(kind, fields, tmp_path):
    sizes = {**SIZES, **fields}
    model = randomise(getattr(transformers(), kind)(transformers().BertConfig(**sizes)))
    ours, params = there_and_back(model, tmp_path)
    tokens = torch.randint(0, 51, (2, 17))
    with torch.no_grad():
        out = model(tokens)
    if kind == "BertModel":
        found = ours.apply(params, tokens.numpy()).tokens
        close(found, out.last_hidden_state)
        close(ours.apply(params, found, method="pool"), out.pooler_output)
    else:
        close(logits(ours, params, tokens.numpy()), out.logits)


def test_bert_that_attends_to_a_context(tmp_path):
    config = transformers().BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)
    model = randomise(transformers().BertLMHeadModel(config))
    ours, params = there_and_back(model, tmp_path)
    tokens, context = torch.randint(0, 51, (2, 7)), torch.randn(2, 5, 32)
    with torch.no_grad():
        theirs = model(tokens, encoder_hidden_states=context).logits
    found = ours.apply(params, tokens.numpy(), context=context.numpy()).tokens
    close(ours.apply(params, found, method="logits"), theirs)


def test_torch_files_of_torch(tmp_path):
    model = build("Llama", SIZES)
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    ours, params, _ = vlmax.load(tmp_path / "theirs")
    tokens = torch.randint(0, 51, (2, 17))
    with torch.no_grad():
        close(logits(ours, params, tokens.numpy()), model(tokens).logits)
