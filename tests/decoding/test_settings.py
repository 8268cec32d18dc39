from __future__ import annotations

import pytest

from vlmax.decoding.settings import Generation
from vlmax.errors import InputError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"min_new_tokens": 65}, "between 0 and max_new_tokens, 64"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1.0, "top_k": -1}, "top_k is -1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"beams": 0}, "beams is 0"),
        ({"beams": 2, "length_penalty": float("inf")}, "length_penalty is inf"),
        ({"beams": 2, "early_stopping": "always"}, "early_stopping is 'always'"),
        ({"temperature": 1.0, "seed": -1}, "seed is -1"),
        ({"stop": ("a", "")}, "without empty strings"),
        ({"beams": 2, "temperature": 1.0}, "do not go together"),
        ({"length_penalty": 0.5}, "raise `beams`"),
        ({"early_stopping": True}, "raise `beams`"),
        ({"top_k": 3}, "raise `temperature`"),
        ({"top_p": 0.5}, "raise `temperature`"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        Generation(**fields)
