"""Exported models pushed to the Hugging Face hub, each with a model card."""

import os
import pathlib

from ddpm_jax.files import reporting
from ddpm_jax.interop.containers import open_container
from ddpm_jax.interop.hub import push
from ddpm_jax.tasks.exporting import LICENSE

CARD = "README.md"  # whose first lines the hub reads
FORMS = {  # format of a file -> library that loads it, what is in it
    "lora": (
        "diffusers",
        "Low-rank updates (LoRA) of the U-Net of Stable Diffusion, by the names of diffusers and "
        "PEFT.",
    ),
    "openai": (
        "guided-diffusion",
        "A diffusion model, or its classifier, as OpenAI's improved- and guided-diffusion name it.",
    ),
    "original": (
        "tensorflow",
        "A diffusion model by the names of the variables in Ho et al.'s code.",
    ),
    "safetensors": ("ddpm_jax", "A model of ddpm_jax; its config is in the file's metadata."),
}
_CARD = """---
library_name: {library}
license: {license}
---

# {name}

{what}

| | |
|---|---|
| file | `{file}` |
| tensors | {tensors:,}, {values:,} values |
"""
_BUILDER = """
```python
model = {builder}
```
"""


def publish(
    path: str | os.PathLike,
    repo: str,
    form: str,
    *,
    builder: str = "",
    license: str = LICENSE,
    private: bool = False,
) -> str:
    """Push what an export has written to the hub, in one commit.

    A directory of diffusers has its card, a file gets one.

    Args:
      path: the directory or the file.
      repo: "owner/model", as `hub.check_push` has accepted it.
      form: "diffusers", or a key of `FORMS`.
      builder: how the other project builds the network of a file, if its files do not say it.
      license: of the weights, for the card of a file.
      private: whether a model that is not there yet is seen by its owner alone.

    Returns:
      the address of the commit.

    Raises:
      FailureError: a file cannot be read, or the hub does not take them.
    """
    place = pathlib.Path(path)
    with reporting(place, "read"):
        if place.is_dir():
            files = {
                file.relative_to(place).as_posix(): file
                for file in place.rglob("*")
                if file.is_file()
            }
        else:
            card = _card(place, repo, form, builder, license)
            files = {place.name: place, CARD: card.encode()}
    return push(repo, files, message=f"Add {place.name}", private=private)


def _card(file: pathlib.Path, repo: str, form: str, builder: str, license: str) -> str:
    library, what = FORMS[form]
    tensors = open_container(file).groups[""]
    card = _CARD.format(
        library=library,
        license=license,
        name=repo.split("/")[1],
        what=what,
        file=file.name,
        tensors=len(tensors),
        values=sum(tensor.size for tensor in tensors.values()),
    )
    return card + (_BUILDER.format(builder=builder) if builder else "")
