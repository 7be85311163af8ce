"""Prompts of all kinds, and CLIP's tokenizer a second time, in plain Python."""

import itertools
import random
import re
import unicodedata

import numpy as np
import pytest

START, END = "<|startoftext|>", "<|endoftext|>"
# The White_Space of Unicode: `str.isspace` also takes the separators U+001C..1F.
SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
SUFFIXES = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def in_class(character, major):
    return unicodedata.category(character)[0] == major


def pieces(text):
    """Yield the parts of a normalised text within which symbols are merged."""
    i = 0
    while i < len(text):
        found = next((s for s in (START, END, *SUFFIXES) if text.startswith(s, i)), None)
        if found:  # a special token here was in capitals: no single id, but a piece of its own
            yield from re.split(r"(?<=<\|)|(?=\|>)", found)
            i += len(found)
        elif text[i] == " ":
            i += 1
        elif in_class(text[i], "N"):
            yield text[i]
            i += 1
        else:
            letters = in_class(text[i], "L")
            j = i + 1
            while (
                j < len(text)
                and text[j] != " "
                and not in_class(text[j], "N")
                and in_class(text[j], "L") == letters
            ):
                j += 1
            yield text[i:j]
            i = j


class PlainTokenizer:
    """Byte-pair encoding with CLIP's rules, from the lines of a merges file."""

    def __init__(self, merges_text):
        self.merges = [tuple(line.split()) for line in merges_text.splitlines()[1:] if line]
        self.rank = {pair: i for i, pair in enumerate(self.merges)}
        shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
        hidden = [b for b in range(256) if b not in shown]
        self.symbols = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
        tokens = [self.symbols[b] for b in shown + hidden]
        tokens += [f"{token}</w>" for token in tokens] + ["".join(pair) for pair in self.merges]
        self.ids = {token: i for i, token in enumerate([*tokens, START, END])}

    def merged(self, piece):
        symbols = [self.symbols[byte] for byte in piece.encode()]
        symbols[-1] += "</w>"
        while True:
            ranks = [self.rank.get(pair, len(self.rank)) for pair in itertools.pairwise(symbols)]
            best = min(ranks, default=len(self.rank))
            if best == len(self.rank):
                return symbols
            i, pair = 0, self.merges[best]
            while i < len(symbols) - 1:
                if (symbols[i], symbols[i + 1]) == pair:
                    symbols[i : i + 2] = ["".join(pair)]
                i += 1

    def tokens(self, prompt):
        for part in re.split(r"(<\|(?:start|end)oftext\|>)", prompt):
            if part in (START, END):
                yield part
                continue
            text = SPACE.sub(" ", unicodedata.normalize("NFC", part))
            for piece in pieces("".join(character.lower() for character in text)):
                yield from self.merged(piece)

    def __call__(self, prompts, length=77):
        rows = []
        for prompt in prompts:
            ids = [self.ids[token] for token in self.tokens(prompt)][: length - 2]
            row = [self.ids[START], *ids, self.ids[END]]
            rows.append(row + [self.ids[END]] * (length - len(row)))
        return np.array(rows)


_WORDS = """a the cat dog photo of in style oil painting 4k 8k masterpiece it's don't we're I'm you'll
    hello world portrait Astronaut RIDING horse highly-detailed https://example.org/a?b=1 (((red)))
    <b> &amp; &lt;3 &#39; <br/> <|startoftext|> <|endoftext|> <|ENDOFTEXT|> user@mail.com #tag snake_case
    'twas rock'n'roll 3.14159 1,000,000 2026-11-26 !!! ... --- café crème Straße İstanbul ΟΔΥΣΣΕΥΣ ñandú"""
WORDS = _WORDS.split()
RANGES = [  # of code points
    (0x20, 0x7F), (0x20, 0x7F), (0x00, 0x100), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530),
    (0x590, 0x700), (0x900, 0xE80), (0x1E00, 0x2000), (0x2000, 0x2C00), (0x3000, 0x3100),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFB50), (0xFE00, 0x10000), (0x1F300, 0x1FAFF),
    (0x1D400, 0x1D800), (0x1F1E6, 0x1F200), (0xE000, 0xE010),
]  # fmt: skip


def generated_prompts(count, seed):
    """Return random prompts: words, digits, HTML, many scripts, emoji, some far too long."""
    rng = random.Random(seed)

    def stretch():
        low, high = rng.choice(RANGES)
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 7)))

    def prompt():
        longest = 120 if rng.random() < 0.05 else 10
        parts = [
            rng.choice(WORDS) if rng.random() < 0.5 else stretch()
            for _ in range(rng.randint(0, longest))
        ]
        return rng.choice([*"      ", "", "", "  ", "\n", "\t ", "\u3000", "\u200d"]).join(parts)

    return [prompt() for _ in range(count)]


def assigned(prompts):
    """Return those without code points that are unassigned in this Python's table of Unicode."""
    return [p for p in prompts if not any(unicodedata.category(c) == "Cn" for c in p)]


@pytest.fixture(scope="session")
def plain_tokenizer():
    """CLIP's tokenizer in plain Python, from the merges that the package ships."""
    from ddpm_jax.text.vocabulary import HEADER, clip_merges

    return PlainTokenizer("\n".join([HEADER, *(" ".join(merge) for merge in clip_merges())]))
