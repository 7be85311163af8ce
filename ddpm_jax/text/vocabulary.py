"""CLIP's vocabulary: byte symbols, merges, special tokens; strings and integers only.

A byte-level vocabulary follows from its merges alone: 256 symbols for bytes, the same at the end of
a word, one token for each merge, and the two special tokens. CLIP's own merges are package data, in
`clip_merges.txt.gz`, with their licence (MIT) next to them. How a prompt is split and merged is in
`tokenizer.py`.
"""

import gzip
from collections.abc import Sequence
from importlib import resources

from ddpm_jax.errors import UsageError

Merge = tuple[str, str]

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
HEADER = "#version: 0.2"  # the first line of a merges file
# Bytes that stand for themselves in Latin-1; the others have no glyph, or one that a merges file
# could not hold.
PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(0xAE, 0x100))


def byte_symbols() -> dict[int, str]:
    """Return the symbol of each of the 256 bytes, in the order of their ids.

    A printable byte is its own character; the n-th of the others is the character 256 + n.
    """
    others = [byte for byte in range(256) if byte not in PRINTABLE]
    return {byte: chr(byte) for byte in PRINTABLE} | {
        byte: chr(256 + n) for n, byte in enumerate(others)
    }


def vocabulary_of(merges: Sequence[Merge]) -> dict[str, int]:
    """Return token -> id of the vocabulary with these merges; START and END have the last ids."""
    symbols = list(byte_symbols().values())
    ends = [symbol + END_OF_WORD for symbol in symbols]
    tokens = [*symbols, *ends, *("".join(merge) for merge in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


def parse_merges(text: str, source: str) -> list[Merge]:
    """Return the merges of a `merges.txt`: two symbols a line, the most frequent first.

    Args:
      text: of the file; a header line is skipped.
      source: the name of the file, for messages.

    Raises:
      UsageError: a line is not two symbols.
    """
    lines = text.split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[first:], first + 1):
        if not line.strip():
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise UsageError(
                f"Line {number} of {source} is {line[:40]!r}: a merges file has two symbols a "
                "line, with one space between them."
            )
        merges.append((pair[0], pair[1]))
    return merges


def clip_merges() -> list[Merge]:
    """Return CLIP's 48,894 merges (Radford et al. 2021)."""
    data = resources.files("ddpm_jax.text").joinpath("clip_merges.txt.gz").read_bytes()
    return parse_merges(gzip.decompress(data).decode(), "clip_merges.txt.gz")
