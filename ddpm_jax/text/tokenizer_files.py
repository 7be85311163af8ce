"""Tokenizers in files, as transformers lays them out; `tokenizer.py` has what they compute.

A directory has `vocab.json` and `merges.txt`, or `merges.txt` alone, or `tokenizer.json`, which
transformers 5 writes without the others; with both, `tokenizer.json` decides, as there. Only tokens
and merges are taken from it, none of its rules. The special tokens are in `special_tokens_map.json`
and `tokenizer_config.json`; in Stable Diffusion 2 they disagree about the padding, and the first
decides.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from ddpm_jax import schema
from ddpm_jax.errors import UsageError
from ddpm_jax.files import as_path, read_file, write_atomically
from ddpm_jax.text.tokenizer import LENGTH, SpecialTokens, Tokenizer
from ddpm_jax.text.vocabulary import HEADER, Merge, parse_merges

LARGEST = 64 << 20  # bytes of a file
LONGEST = 4096  # ids in a row: a larger `model_max_length` stands for "unknown"
NAMES = {"start": "bos_token", "end": "eos_token", "unknown": "unk_token", "pad": "pad_token"}
VOCABULARY = schema.Table(others=schema.Whole(high=2**31 - 1))
KINDS = {
    "tokenizer.json": schema.Table({"model": schema.Table({"vocab": VOCABULARY, "merges": None})}),
    "vocab.json": VOCABULARY,
    "tokenizer_config.json": schema.Table(),
    "special_tokens_map.json": schema.Table(),
}


def read_tokenizer(
    directory: str | os.PathLike, *, length: int | None = None, clean: str = "none"
) -> Tokenizer:
    """Read a tokenizer from its directory, here or in a bucket.

    Args:
      directory: `tokenizer/` of a Stable Diffusion directory, say.
      length: of the rows of ids; None for `model_max_length` of the files, or 77.
      clean: as in `Tokenizer`.

    Raises:
      UsageError: there is no vocabulary in it, or a file is damaged, or is of another kind of
        tokenizer than CLIP's.
    """
    folder = as_path(directory)
    vocabulary, merges, added = _read_vocabulary(folder)
    config = _read_json(folder, "tokenizer_config.json") or {}
    names = config | (_read_json(folder, "special_tokens_map.json") or {})
    if added is None:
        added = list((config.get("added_tokens_decoder") or {}).values())
    special = _special_tokens(names, added, str(folder))
    if length is None:
        longest = config.get("model_max_length")
        length = longest if isinstance(longest, int) and longest <= LONGEST else LENGTH
    return Tokenizer(merges, vocabulary, special=special, length=length, clean=clean)


def write_tokenizer(tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
    """Write a tokenizer's four files into a directory, which all versions of transformers read.

    Raises:
      OSError: a file cannot be written.
    """
    folder, special = as_path(directory), tokenizer.special
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        theirs: _token(getattr(special, ours), special.any_case) for ours, theirs in NAMES.items()
    }
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.length,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    } | {theirs: getattr(special, ours) for ours, theirs in NAMES.items()}
    merges = "\n".join([HEADER, *(" ".join(merge) for merge in tokenizer.merges), ""])
    texts = {
        "vocab.json": json.dumps(tokenizer.vocabulary, ensure_ascii=False),
        "merges.txt": merges,
        "special_tokens_map.json": json.dumps(names, indent=2),
        "tokenizer_config.json": json.dumps(config, indent=2),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())


def _read_vocabulary(folder: Any) -> tuple[dict[str, int] | None, list[Merge], list | None]:
    """Return vocabulary, merges and, of `tokenizer.json`, the added tokens."""
    if (whole := _read_json(folder, "tokenizer.json")) is not None:
        return _of_one_file(whole, f"{folder}/tokenizer.json")
    merges = _read(folder, "merges.txt")
    if merges is None:
        raise UsageError(
            f"{folder} has no tokenizer: vocab.json and merges.txt, or tokenizer.json, are missing."
        )
    source = f"{folder}/merges.txt"
    try:
        text = merges.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{source} is damaged: it is no text in UTF-8.") from None
    return _read_json(folder, "vocab.json"), parse_merges(text, source), None


def _of_one_file(whole: Mapping[str, Any], source: str) -> tuple[dict[str, int], list[Merge], list]:
    model, added = whole["model"], whole.get("added_tokens") or []
    if model.get("type", "BPE") != "BPE":
        raise UsageError(f"{source} is a tokenizer of type {model['type']!r}, and CLIP's is BPE.")
    try:
        lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        vocabulary = model["vocab"] | {token["content"]: token["id"] for token in added}
    except (TypeError, KeyError):
        raise UsageError(f"{source} is damaged: its merges or added tokens are none.") from None
    return vocabulary, parse_merges("\n".join(lines), source), added


def _special_tokens(names: Mapping[str, Any], added: list, source: str) -> SpecialTokens:
    """Return the special tokens of the files' `names`, strings or objects.

    A token is found in capitals too where its object says `normalized`: that among the `added`
    ones, or the last of `names`, of which strings say no.
    """
    tokens = {ours: names[theirs] for ours, theirs in NAMES.items() if names.get(theirs)}
    objects = [
        value if isinstance(value, dict) else {"content": value}
        for value in [*tokens.values(), *added]
    ]
    if not all(isinstance(value.get("content"), str) for value in objects):
        raise UsageError(f"The special tokens in {source} are damaged: a token is a text.")
    texts = {ours: _content(value) for ours, value in tokens.items()}
    special = SpecialTokens(**texts)
    for value in objects:
        if value["content"] not in special.all:
            raise UsageError(
                f"The tokenizer in {source} has the added token {value['content']!r}: only the "
                "special tokens of CLIP are read."
            )
    normalized = {value["content"]: bool(value.get("normalized")) for value in objects}
    any_case = frozenset(token for token, everywhere in normalized.items() if everywhere)
    return dataclasses.replace(special, any_case=any_case)


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _token(content: str, any_case: frozenset[str]) -> str | dict[str, Any]:
    """Return a token as special_tokens_map.json has it."""
    sides = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    return {"content": content, "normalized": True} | sides if content in any_case else content


def _read_json(folder: Any, name: str) -> Any:
    """Return the content of a JSON file, None if it is not there."""
    data = _read(folder, name)
    try:
        return None if data is None else schema.parse(data, KINDS[name], largest=LARGEST)
    except schema.Malformed as error:
        raise UsageError(f"{folder}/{name} is damaged: {error}.") from error


def _read(folder: Any, name: str) -> bytes | None:
    try:
        return read_file(folder / name, largest=LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{folder}/{name} cannot be read ({error.strerror or error}).") from error
