from __future__ import annotations

import pytest

from tests.interop.models import MODELS
from vlmax.described import rebuilt, refreshed, resolved
from vlmax.errors import InputError


@pytest.mark.parametrize("name", MODELS)
def test_back_again(name):
    _, config = MODELS[name]
    assert rebuilt(resolved(config)) == config


@pytest.mark.parametrize("name", MODELS)
def test_what_this_version_wrote_is_refreshed_to_itself(name):
    tree = resolved(MODELS[name][1])
    assert refreshed(tree) == tree


def test_an_older_tree_is_refreshed():
    tree = resolved(MODELS["llama"][1])
    old = {name: value for name, value in tree.items() if name != "window"} | {"type": "vlmax.interop.llama.LLaMA"}
    assert refreshed([{"model": old}]) == [{"model": tree}]
    other = {"type": "elsewhere.Thing", "field": [old]}
    assert refreshed(other) == {"type": "elsewhere.Thing", "field": [tree]}


def test_types_that_are_not_ours():
    for kind in ("os.system", "vlmax.errors.InputError", "vlmax.nowhere.Thing", "subprocess.Popen"):
        with pytest.raises(InputError, match="this vlmax has no"):
            rebuilt({"type": kind})
    with pytest.raises(InputError, match="no field 'witdh'; did you mean 'width'"):
        rebuilt({"type": "vlmax.models.decoders.llama.LLaMA", "witdh": 3})
