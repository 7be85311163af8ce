"""Text: CLIP's tokenizer and vocabulary, and prompts to the features of a text encoder.

    ddpm_jax.text.encode(["a dog wearing hat"], "PATH/stable-diffusion-v1-4").context

A name is imported when it is first used: the tokenizer needs no JAX, and `tokenizers` is imported
when a tokenizer is made.
"""

import importlib
from typing import Any

# name -> module of this package that defines it
_DEFINED_IN = {
    "EncodedTexts": "text_model",
    "TextModel": "text_model",
    "Tokenizer": "tokenizer",
    "clip_tokenizer": "tokenizer",
    "encode": "text_model",
    "load_text_model": "text_model",
    "read_tokenizer": "tokenizer_files",
    "write_tokenizer": "tokenizer_files",
}
__all__ = [*_DEFINED_IN]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
