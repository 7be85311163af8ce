"""What the fuzzer damages: two tiny runs, their data, and files of every kind that a command
reads."""

import contextlib
import importlib
import json
import os
import pathlib

import numpy as np
from PIL import Image

from ddpm_jax.cli import command

COMMANDS = (
    "train",
    "sample",
    "evaluate",
    "plot",
    "draw",
    "ema",
    "encode",
    "decode",
    "import_first_stage",
    "samplers",
)
SIZE = 8
MODEL = {"ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "dropout": 0.0}


def config(world, **more):
    return {
        "data": {
            "name": "folder",
            "data_dir": str(world / "pictures"),
            "image_size": SIZE,
            "channels": 1,
            "flip": False,
            "holdout": 0.25,
        },
        "diffusion": {"num_timesteps": 4, "beta_end": 0.9},
        "model": MODEL,
        "optimizer": {"warmup_steps": 0},
        "ema": {"decay": 0.5, "decays": (0.9,)},
        "train": {
            "num_steps": 4,
            "batch_size": 4,
            "log_every": 1,
            "sample_every": 0,
            "num_samples": 2,
            "sample_steps": 2,
        },
        "checkpoint": {"save_every": 2},
    } | more


def of_first_stage(world, kind="ae"):
    more = {"diffusion": {}, "first_stage": {"kind": kind, "latent_channels": 2}}
    fields = config(world, objective="first_stage", **more)
    del fields["train"]["sample_steps"]  # it makes no images
    return fields


def write_configs(world):
    write_config(world / "mine.py", config(world))
    write_config(world / "stage.py", of_first_stage(world))


def write_config(path, fields):
    # `repr` of a float that is none is a name, and of these Python has none.
    path.write_text(
        f"nan, inf = float('nan'), float('inf')\n\n\ndef get_config():\n    return {fields!r}\n"
    )


def invoke(name, argv):
    main = importlib.import_module(f"ddpm_jax.cli.{name}").main
    return command.run(main, [str(argument) for argument in argv])


def build(world: pathlib.Path) -> None:
    """Makes it all below `world`, an empty directory."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (world / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            # Smooth, so that JPEG keeps it; of two formats.
            picture = Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).resize(
                (12, 10), Image.Resampling.BICUBIC
            )
            picture.save(world / "pictures" / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    Image.open(world / "pictures" / "cat" / "1.png").save(world / "photo.png")
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 10, 0).repeat(6, 1)).save(world / "mask.png")
    write_configs(world)
    _must(invoke("train", ["--config", world / "mine.py", "--workdir", world / "run"]))
    _must(invoke("train", ["--config", world / "stage.py", "--workdir", world / "stage"]))
    _must(invoke("sample", ["--ckpt", world / "run", *SAMPLING, "--out", world / "generated"]))
    pictures = sorted((world / "pictures" / "cat").iterdir())
    _must(invoke("encode", ["--ckpt", world / "stage", *pictures, "--out", world / "latents.npz"]))
    _write_weights(world)


SAMPLING = ("--num_samples", 2, "--batch_size", 2, "--steps", 2)


def _write_weights(world):
    """The first stage's under the names of another project, as NPZ and as safetensors."""
    from ddpm_jax.experiments.loading import load_first_stage
    from ddpm_jax.interop.autoencoder_kl import autoencoder_params_to_diffusers

    loaded = load_first_stage(world / "stage")
    tensors = autoencoder_params_to_diffusers(loaded.params, loaded.model.network)
    np.savez_compressed(world / "weights.npz", **tensors)
    index, rest = {}, b""
    for name, value in tensors.items():
        content = value.tobytes()
        index[name] = {
            "dtype": "F32",
            "shape": value.shape,
            "data_offsets": [len(rest), len(rest) + len(content)],
        }
        rest += content
    header = json.dumps(index).encode()
    (world / "weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + rest)


def _must(code):
    if code != 0:
        raise RuntimeError(f"The world of the fuzzer cannot be made: exit code {code}.")


def arguments(name: str, here: pathlib.Path) -> list[str]:
    """A command line that succeeds; `here` is a copy of the world, and what is made goes there
    too."""
    data = ["--data_dir", here / "pictures"]
    argv = {
        "train": [
            "--config",
            here / "mine.py",
            "--workdir",
            here / "run",
            "--config.train.num_steps=5",
        ],
        "sample": ["--ckpt", here / "run", *SAMPLING, "--out", here / "out"],
        "evaluate": [
            "--ckpt",
            here / "run",
            "--metric",
            "bpd",
            "--num_images",
            2,
            "--out",
            here / "out",
            *data,
        ],
        "plot": [here / "run", "--out", here / "plot.png"],
        "draw": ["--ckpt", here / "stage", "--num_samples", 2, *data],
        "ema": ["--ckpt", here / "run", "--average", "decay_0.9"],
        "encode": ["--ckpt", here / "stage", here / "photo.png", "--out", here / "z.npz"],
        "decode": ["--ckpt", here / "stage", here / "latents.npz", "--out", here / "sheet.png"],
        "import_first_stage": [
            "--config",
            here / "stage.py",
            "--weights",
            here / "weights.safetensors",
            "--out",
            here / "imported",
        ],
        "samplers": [
            "--samplers",
            "ddim",
            "--num_samples",
            2,
            "--evaluations",
            2,
            "--out",
            here / "samplers",
        ],
    }[name]
    return [str(argument) for argument in argv]


def made(name: str, here: pathlib.Path) -> dict[str, bytes]:
    """What a command that succeeded has made that must be the same when it succeeds again."""
    outcome = {}
    # a plot may name a directory
    pictures = ("*.npz", "*.png") if name in ("sample", "decode") else ("*.npz",)
    for path in (here / "out", here / "z.npz", here / "sheet.png", here / "imported"):
        files = (
            [path]
            if path.is_file()
            else [file for kind in pictures for file in sorted(path.rglob(kind))]
        )
        for file in files:
            with contextlib.suppress(OSError):
                outcome[os.path.relpath(file, here)] = _content(file)
    return outcome


def _content(file):
    if file.suffix != ".npz":
        return file.read_bytes()
    with np.load(file) as arrays:
        return b"".join(
            name.encode() + arrays[name].tobytes()
            for name in sorted(arrays.files)
            if name in _NUMBERS
        )


_NUMBERS = ("images", "index", "latents", "codes", "mean", "log_variance", "total")
