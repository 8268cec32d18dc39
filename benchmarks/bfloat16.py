"""How far bfloat16 is from float32: our logits and those of transformers, beside transformers' own float32.

    PEER -m benchmarks.bfloat16

Random language models at a width where rounding adds up as it does in real ones: the largest and the mean difference of
the logits over the largest logit. Parameters are stored in bfloat16 on both sides. Needs torch, transformers and JAX in
one environment: requirements.txt and requirements-parity.txt.
"""

from __future__ import annotations

import copy
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch

import vlmax
from tests.parity.torch_imports import transformers as imported

transformers = imported()

SIZES = {"vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8}
MODELS = {
    "LLaMA": (transformers.LlamaForCausalLM, {**SIZES, "intermediate_size": 688}),
    "Mistral": (
        transformers.MistralForCausalLM,
        {**SIZES, "intermediate_size": 688, "num_key_value_heads": 2, "sliding_window": 32},
    ),
    "Qwen2": (transformers.Qwen2ForCausalLM, {**SIZES, "intermediate_size": 688, "num_key_value_heads": 2}),
    "GPT-2": (transformers.GPT2LMHeadModel, {"vocab_size": 512, "n_embd": 256, "n_layer": 8, "n_head": 8}),
    "OPT": (transformers.OPTForCausalLM, {**SIZES, "ffn_dim": 1024}),
}


def main() -> None:
    """Prints a row for each family."""
    print("family     ours: largest, mean      transformers: largest, mean")
    for name, (kind, fields) in MODELS.items():
        rows = difference(kind(kind.config_class(**fields, pad_token_id=0, bos_token_id=1, eos_token_id=2)))
        print(f"{name:10} " + "      ".join(f"{largest:.2%}  {mean:.3%}     " for largest, mean in rows))


def difference(model: torch.nn.Module) -> list[tuple[float, float]]:
    """Largest and mean difference from float32 over the largest logit: ours, theirs."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            parameter.copy_(parameter.bfloat16())  # what is measured is the arithmetic, not how the weights are stored
        tokens = torch.randint(3, 512, (4, 64))
        exact = model.eval()(tokens).logits.numpy()
        theirs = copy.deepcopy(model).bfloat16()(tokens).logits.float().numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.bfloat16().save_pretrained(folder)
        ours, params, _ = vlmax.load(folder, dtype="bfloat16")

    @jax.jit
    def logits(params):
        return ours.apply(params, ours.apply(params, jnp.asarray(tokens.numpy())).tokens, method="logits")

    found = np.asarray(logits(params), np.float32)
    size = np.abs(exact).max()
    return [(np.abs(x - exact).max() / size, np.abs(x - exact).mean() / size) for x in (found, theirs)]


if __name__ == "__main__":
    main()
