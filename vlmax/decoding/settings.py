"""How a text is continued, and the tokens that have a meaning while it is."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from vlmax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Generation:
    """How a text is continued. The defaults take the likeliest token at every place ("greedy").

    Raises:
      InputError: values out of range, or some that exclude each other.
    """

    max_new_tokens: int = 64
    """Tokens after the prompt at most, the mark of the end included."""
    min_new_tokens: int = 0
    """As long as there are fewer, the mark of the end is not chosen."""
    temperature: float = 0.0
    """0: the likeliest token; else tokens are drawn from the probabilities of logits / temperature."""
    top_k: int = 0
    """Tokens are drawn from the likeliest `top_k`; 0: from all."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest whose probabilities together reach this (Holtzman et al. 2020, section 3)."""
    repetition_penalty: float = 1.0
    """Logits of tokens that are in the prompt or the text are divided by this where positive, else multiplied (Keskar
    et al. 2019, section 4.1)."""
    beams: int = 1
    """Texts that are continued side by side to find the likeliest whole; 1: no beam search."""
    length_penalty: float = 1.0
    """Beam search: the log-probability of a finished text is divided by its tokens to this power; above 0 favours long
    texts."""
    early_stopping: bool | Literal["never"] = False
    """Beam search ends for a prompt: True, with as many finished texts as beams; False, when no running text would be
    better than the worst finished one if it ended now; "never": nor if it went on."""
    stop: tuple[str, ...] = ()
    """A text also ends with the token that completes one of these."""
    seed: int = 0
    """Of the tokens that are drawn."""

    def __post_init__(self):
        def refuse(name, right):
            raise InputError(f"generation: {name} is {getattr(self, name)!r}; it must be {right}")

        if self.max_new_tokens < 1:
            refuse("max_new_tokens", "1 or more")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            refuse("min_new_tokens", f"between 0 and max_new_tokens, {self.max_new_tokens}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            refuse("temperature", "0 (the likeliest token) or more")
        if self.top_k < 0:
            refuse("top_k", "0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            refuse("top_p", "above 0 and at most 1")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            refuse("repetition_penalty", "above 0; 1 changes nothing")
        if self.beams < 1:
            refuse("beams", "1 or more")
        if not math.isfinite(self.length_penalty):
            refuse("length_penalty", "finite")
        if self.early_stopping not in (True, False, "never"):
            refuse("early_stopping", 'True, False or "never"')
        if not 0 <= self.seed < 2**31:
            refuse("seed", f"between 0 and {2**31 - 1}")
        if not all(self.stop):
            refuse("stop", "without empty strings")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.beams > 1 and self.temperature:
            raise InputError(
                f"generation: beams {self.beams} and temperature {self.temperature} do not go together: beam search "
                "draws no tokens; set temperature to 0 or beams to 1"
            )
        if self.beams == 1 and (self.length_penalty != 1 or self.early_stopping):
            raise InputError("generation: length_penalty and early_stopping are those of beam search; raise `beams`")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise InputError(
                f"generation: top_k {self.top_k} and top_p {self.top_p} say what tokens are drawn from, but with "
                "temperature 0 none are; raise `temperature`"
            )


@dataclasses.dataclass(frozen=True)
class Marks:
    """Tokens with a meaning.

    Attributes:
      eos: each of them ends a text; (): nothing does, and all texts have `max_new_tokens`.
      start: what an encoder-decoder's output begins with; T5 takes its padding, 0.
    """

    eos: tuple[int, ...] = ()
    start: int = 0


GREEDY, NO_MARKS = Generation(), Marks()
