"""Thousands of strings of every kind that a tokenizer meets: captions, languages, emoji, code, white space, noise.

They are the same whatever the version of Python and of vlmax: golden files hold what reference tokenizers make of them.
"""

# ruff: noqa: RUF001  letters that look like others are what some strings are for
from __future__ import annotations

import gzip
import json
import random
import unicodedata
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from tests.shared import shared

FIXED = (
    *("", " ", "  ", "\n", "\t", " \n\t ", "\r\n", "a", " a", "a ", "  a  b  ", "a\nb\n\nc", "\u00a0", "\u3000x"),
    *("it's we'll I'd you're they've he'S IT'S don't", "1 12 123 1234567890 3.14159 -1e-9 1,000,000 ½ ² ٣ 四"),
    *("!?!... ---- #@$%^&*()_+{}|:<>?", "‘quoted’ “quoted” «quoted» — – …", "e\u0301 é ﬁ ǆ Å Å ﷺ ß ẞ İ ı Ⅷ"),
    *("https://example.com/a?b=c&d=%20#x", "a@b.example", "C:\\Users\\x", "&amp; &lt;b&gt; &nbsp; &#233;", "schÃ¶n"),
    *("東京タワーは高いです。", "日本語とEnglishの混ざった文、絵文字🎉も。", "カタカナ ひらがな ｶﾀｶﾅ"),
    *("你好，世界", "안녕하세요 세계", "Привет, мир!", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया"),
    *("สวัสดีชาวโลก", "Xin chào thế giới", "👩\u200d👩\u200d👧\u200d👦 👍🏽 🇯🇵 🏳️\u200d🌈 ☺️ ☺ 1️⃣"),
    *("\x00\x01\x07\x7f\x85", "\ufffd \U0010ffff \ue000", "\u200b\u200d\ufeff\u202e\u00ad", "\u2003y\u2009z\u3000"),
    *("[CLS] [SEP] [PAD] [MASK] [UNK]", "</s> <s> <pad> <unk>"),
    *("<|endoftext|> <|startoftext|>", "a<|endoftext|>b", "<extra_id_0> <image>", "▁ ▁a a▁b", "Ġ Ċ ##ing ing</w>"),
    *("a" * 2_000, "word " * 3_000, "日本" * 1_500, "🎉" * 700, " " * 500, "\n" * 300, "ab" * 60 + "🙂" + "1" * 300),
    "Antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
)
WORDS = (
    *("a", "the", "of", "red", "blue", "circle", "dog", "Dog", "DOG", "runs", "running", "naïve", "café", "Straße"),
    *("東京", "犬", "안녕", "привет", "शब्द", "🎉", "🚲", "x", "=", "y", "42", "3.5", "don't", "</p>", "<b>", "->"),
    *("{}", "\\n", "//", "#", "'", '"', "(", ")", "[", "]", "."),
)
# Lines of code, a few of which make a string.
CODE = """\
def mean(values: list[float]) -> float:
    \"\"\"The mean; 0.0 of nothing.\"\"\"
    return sum(values) / len(values) if values else 0.0

class Point3D(NamedTuple):
    x: float = 1e-3; y: float = -0.5  # metres
    @property
    def norm(self): return (self.x**2 + self.y**2) ** 0.5
for i, (k, v) in enumerate(sorted(d.items(), key=lambda kv: -kv[1])):
    print(f"{i:>3d}\\t{k!r}: {v:.2%}", end="\\n")
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
#include <stdio.h>
int main(int argc, char **argv) {
\tfor (size_t i = 0; i < 0xFFu; ++i) { buf[i] ^= (uint8_t)(i << 2 | 1); }
\treturn printf("%s: %d%%\\n", argv[0], argc) >= 0 ? 0 : -1;
}
const f = async (x) => await fetch(`/api/v1/${x?.id ?? 'none'}`, {method: "POST"});
document.querySelector("#main > .item[data-id='7']")?.remove(); // ===
<div class="row"><img src="a.png" alt="a &quot;dog&quot;"/><br></div>
fn longest<'a>(x: &'a str, y: &'a str) -> &'a str { if x.len() > y.len() { x } else { y } }
SELECT name, COUNT(*) AS n FROM users WHERE age >= 18 GROUP BY name HAVING n > 1;
grep -rn --include='*.py' "note\\b" . | awk -F: '{print $1}' | sort -u > out.txt 2>&1
{"key": [1, 2.5, null, true], "nested": {"a\\u00e9": "b\\\\n"}}
\\begin{equation} \\frac{\\partial L}{\\partial w_{ij}} = \\sum_{k=1}^{N} x_k \\end{equation}
00000000: 7f45 4c46 0201 0100 0000 0000 0000 0000  .ELF............
        deeply.indented(call, with_=arguments)
""".splitlines()
SPACES = (" ", " ", " ", "  ", "\n", "\t", "\u00a0", "\u3000", "", "   ")
# First and last code points of scripts and symbols; the last one is everything.
RANGES = (
    *((0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x4FF), (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0xEFF)),
    *((0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)),
    *((0xF900, 0xFAFF), (0xFE00, 0xFFEF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0, 0x10FFFF)),
)


def varied(count: int = 12_000, seed: int = 0) -> list[str]:
    """So many different strings, the same for the same seed."""
    rng = random.Random(seed)
    captions = _captions()
    emoji = _emoji()
    makers: Sequence[Callable[[], str]] = (
        lambda: rng.choice(captions),
        lambda: rng.choice(emoji),
        lambda: "\n".join(" " * rng.choice((0, 0, 1, 2, 4, 8)) + rng.choice(CODE) for _ in range(rng.randint(1, 12))),
        lambda: "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 30))),
        lambda: _noise(rng, RANGES[:-1]),
        lambda: _noise(rng, RANGES),
        lambda: rng.choice(SPACES) + rng.choice(captions).upper() + rng.choice(SPACES) + rng.choice(emoji),
    )
    found = dict.fromkeys(FIXED)
    while len(found) < count:
        found[rng.choice(makers)()] = None
    return list(found)


def digest_of_ids(ids: Sequence[int]) -> int:
    """Sixteen bits of what a tokenizer made of a string, never 0."""
    return zlib.crc32(np.asarray(ids, "<i4").tobytes()) % 0xFFFF + 1


def digest_of_strings(strings: Sequence[str]) -> int:
    """Tells whether golden digests were made of these strings."""
    return zlib.crc32("\0".join(strings).encode())


def _captions() -> list[str]:
    with gzip.open(shared("data", "coco_captions_val2017", "captions_val2017.json.gz"), "rt", encoding="utf-8") as file:
        return [annotation["caption"] for annotation in json.load(file)["annotations"]]


def _emoji() -> list[str]:
    """Each emoji, alone and among its names in English and Japanese."""
    lines = shared("data", "emoji", "codepoints.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        text
        for row in rows
        for text in (row["emoji"], f"{row['caption']} {2 * row['emoji']}", row["emoji"] + (row["caption_ja"] or ""))
    ]


def _noise(rng: random.Random, ranges: Sequence[tuple[int, int]]) -> str:
    """Random characters, many of one script; no surrogates, which are no text."""
    first, last = rng.choice(ranges)
    letters = [chr(rng.randint(first, last)) for _ in range(rng.randint(1, 40))]
    spaced = [letter if rng.random() < 0.9 else " " for letter in letters]
    return "".join(letter for letter in spaced if unicodedata.category(letter) != "Cs")
