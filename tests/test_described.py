from __future__ import annotations

import pytest

from tests.interop.models import MODELS
from vlmax.described import rebuilt, resolved
from vlmax.errors import InputError


@pytest.mark.parametrize("name", MODELS)
def test_back_again(name):
    _, config = MODELS[name]
    assert rebuilt(resolved(config)) == config


def test_types_that_are_not_ours():
    for kind in ("os.system", "vlmax.errors.InputError", "vlmax.nowhere.Thing", "subprocess.Popen"):
        with pytest.raises(InputError, match="this vlmax has no"):
            rebuilt({"type": kind})
    with pytest.raises(InputError, match="no field 'witdh'; did you mean 'width'"):
        rebuilt({"type": "vlmax.models.decoders.llama.LLaMA", "witdh": 3})
