"""Runs of an earlier version load, resume and give the images and numbers they gave then.

`fixtures/runs/README.md` says how the runs and their outputs were made. Only the scripts at the
root and their flags are used: whatever moves inside the package, this test stays as it is.

Loaded weights must be the same bits. What is computed from them may differ in the last bits between
versions of XLA and kinds of processor: a pixel by a level where it is rounded the other way, a
number by RTOL. With the versions that made the outputs nothing differs.
"""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parents[1]
FIXTURES = pathlib.Path(__file__).parent / "fixtures"
LEVELS = 1  # of 255, that a pixel may differ by
PIXELS = 0.02  # share of the pixels that may
RTOL = 1e-3

FOUND = ("dataset", "frozen_first_stage")  # what config.json has that no config sets
RESUME = "train.py --config {config} --workdir {run} --config.train.num_steps=8"
FOUR = "sample.py --ckpt {run} --out {out} --num_samples 4"
INPAINT = f"{FOUR} --inpaint {{photo}} --mask {{mask}} --steps 10 --resamplings 2 --jump 2"
INTERPOLATE = "sample.py --ckpt {run} --out {out} --interpolate {photo} {other}"
GUIDED = f"{FOUR} --labels 3,5 --guidance_scale 3 --guidance_interval 0.2,0.8"
EVALUATE = "evaluate.py --ckpt {run} --out {out}"
COMMANDS = {  # run -> name -> command; they are given in this order, in one process a run
    "unet": {
        "ancestral": FOUR,
        "ddim": f"{FOUR} --sampler ddim --steps 10",
        "ddim_eta": f"{FOUR} --sampler ddim --sampler_options eta=0.7 --steps 10",
        "karras": f"{FOUR} --sampler dpmpp_2m --spacing karras --steps 5",
        "edited": f"{FOUR} --init_image {{photo}} --strength 0.5",
        "inpainted": INPAINT,
        "interpolated": f"{INTERPOLATE} --interpolate_steps 4",
        "bound": f"{EVALUATE} --metric bpd --num_images 4",
        "resume": RESUME,
        "resumed": f"{FOUR} --raw_weights",
    },
    "dit_by_class": {
        "classes": FOUR,
        "guided": f"{GUIDED} --sampler ddim --steps 10",
        "resume": RESUME,
        "resumed": FOUR,
    },
    "vae": {
        "scores": f"{EVALUATE} --metric elbo,reconstruction --num_images 8",
        "resume": RESUME,
        "resumed": f"{EVALUATE} --metric elbo --num_images 8",
    },
    "latents": {
        "karras": f"{FOUR} --sampler dpmpp_2m --spacing karras --steps 5",
        "inpainted": INPAINT,
        "resume": RESUME,
        "resumed": f"{FOUR} --raw_weights",
    },
}
QUICKLY = {  # to compile: the programs are small, and most of the test's time is XLA's
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}
ONE_AFTER_THE_OTHER = """
import json, runpy, sys
for line in sys.stdin:
    sys.argv = json.loads(line)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


def start(run_name, directory):
    """Copy a run and starts its commands on the copy, their results in `directory` by name."""
    run = shutil.copytree(FIXTURES / "runs" / run_name, directory / "run")
    saved = json.loads((run / "config.json").read_text())
    fields = {key: value for key, value in saved.items() if key not in FOUND}
    (directory / "config.py").write_text(f"def get_config():\n    return {fields!r}\n")
    digits = np.round(load_digits().images[[3, 8]] * 255 / 16).astype(np.uint8)
    upper_half = np.repeat(np.array([[255], [0]], np.uint8), 4, axis=0).repeat(8, axis=1)
    pictures = {"photo": digits[0], "other": digits[1], "mask": upper_half}
    places = {name: directory / f"{name}.png" for name in pictures}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(places[name])
    places |= {"run": run, "config": directory / "config.py"}
    lines = [
        [part.format(**places, out=directory / command) for part in shlex.split(line)]
        for command, line in COMMANDS[run_name].items()
    ]
    (directory / "commands").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with open(directory / "commands") as commands, open(directory / "said", "w") as said:
        argv = [sys.executable, "-c", ONE_AFTER_THE_OTHER]
        streams = {"stdin": commands, "stdout": said, "stderr": said}
        return subprocess.Popen(argv, cwd=ROOT, env=os.environ | QUICKLY, **streams)


def load_images(directory, name):
    """What the command of this name has drawn, uint8 [N, 8, 8]; None where it drew nothing."""
    for file in (directory / name).glob("samples-*.npz"):
        with np.load(file) as shard:
            return shard["images"][..., 0]
    for file in (directory / name).glob("interpolate_*.png"):
        # A row of images under their labels: each of 8x8 squares of 11x11 pixels, and 2 apart.
        with Image.open(file) as picture:
            pixels = np.asarray(picture)[24:112]
        lefts = range(2 + 5, pixels.shape[1], 90)
        return np.stack([pixels[5::11, left : left + 88 : 11] for left in lefts])
    return None


def read_numbers(directory, name):
    """All numbers but whole ones that the command of this name has written, by dotted names."""
    if name == "resume":
        records = map(json.loads, (directory / "run" / "metrics.jsonl").read_text().splitlines())
        losses = {record["step"]: record for record in records if "loss" in record}
        kept = ("loss", "grad_norm", "learning_rate")
        return {f"{step}.{kind}": losses[step][kind] for step in (7, 8) for kind in kept}
    numbers = {}
    for file in sorted((directory / name).glob("*.json")):
        if file.name != "manifest.json":
            found = json.loads(file.read_text())
            del found["config"]
            numbers |= {f"{found['metric']}.{key}": value for key, value in floats_in(found)}
    return numbers


def floats_in(values, prefix=""):
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from floats_in(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", value


def read_digest(directory, name):
    """The SHA-256 of the weights that the command of this name used, as it has written it down."""
    file = next((directory / name).glob("*.json"))
    return json.loads(file.read_text())["weights_sha256"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The directory with the results of each run's commands, which run side by side."""
    directories = {name: tmp_path_factory.mktemp(name) for name in COMMANDS}
    processes = {name: start(name, directory) for name, directory in directories.items()}
    codes = {name: process.wait() for name, process in processes.items()}
    for name, code in codes.items():
        assert code == 0, (directories[name] / "said").read_text()[-3000:]
    return directories


@pytest.fixture(scope="module")
def expected():
    return json.loads((FIXTURES / "outputs" / "numbers.json").read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_weights_are_the_same_bits(results, expected, name):
    assert (
        read_digest(results[name], next(iter(COMMANDS[name]))) == expected[name]["weights_sha256"]
    )


@pytest.mark.parametrize("name", ["unet", "dit_by_class", "latents"])
def test_the_images_are_the_same(results, name):
    with np.load(FIXTURES / "outputs" / f"{name}.npz") as images:
        for command, wanted in images.items():
            difference = np.abs(load_images(results[name], command).astype(int) - wanted)
            differing = np.mean(difference > 0)
            said = f"{command}: {differing:.2%} of the pixels differ, by up to {difference.max()}"
            assert difference.max() <= LEVELS, said
            assert differing <= PIXELS, said


@pytest.mark.parametrize("name", COMMANDS)
def test_the_numbers_are_the_same(results, expected, name):
    for command, wanted in expected[name]["numbers"].items():
        found = read_numbers(results[name], command)
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key], value, rtol=RTOL, err_msg=f"{command}: {key}")
