"""`python -m ddpm_jax.cli.samplers`: one row for every sampler and budget, on the mixture and on a model."""

import json

import numpy as np
import pytest
from PIL import Image

FLAGS = ["--samplers", "ddim,heun,ancestral", "--spacing", "logsnr"]


def test_on_the_mixture_errors_fall_with_evaluations(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("samplers", *FLAGS, "--evaluations", "9,39")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "samplers" / "samplers_logsnr_seed0.json").read_text())
    rows = {(row["sampler"], row["evaluations"]): row for row in record["rows"]}
    assert set(rows) == {(name, n) for name in ("ddim", "heun", "ancestral") for n in (9, 39)}
    assert rows["heun", 39]["steps"] == 20
    for name, order in (("ddim", 1), ("heun", 2)):
        gain = rows[name, 9]["mixture_flow"] / rows[name, 39]["mixture_flow"]
        assert gain > 3**order, f"{name}: {gain}"
    assert rows["ancestral", 39]["mixture_flow"] is None  # it has noise of its own
    assert rows["ancestral", 39]["mixture_energy"] < rows["ancestral", 9]["mixture_energy"]
    assert 0 <= record["floors"]["mixture_energy"] < rows["ancestral", 9]["mixture_energy"]
    with Image.open(tmp_path / "samplers" / "samplers_logsnr_seed0.png") as picture:
        assert np.asarray(picture).std() > 10
    assert "what chance alone leaves" in result.out


def test_on_a_model_the_distance_and_the_times_are_there(invoke, trained, tmp_path):
    argv = ["--ckpt", trained, "--num_samples", 8, "--evaluations", "3", "--samplers", "ddim", "--out", tmp_path]
    assert invoke("samplers", *argv).code == 0
    (path,) = tmp_path.glob("*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["frechet"] > 0
    assert row["seconds_per_image"] > 0
    assert row["seconds_compiling"] > 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--samplers", "ddim,hoin"], ["Unknown sampler 'hoin'"]),
        (["--spacing", "karas"], ["Unknown spacing 'karas'", "karras"]),
        (["--evaluations", "0,5"], ["--evaluations 0,5", "at least 1"]),
        (["--evaluations", "five"], ["--evaluations five"]),
        (["--guidance_scale", "2"], ["--guidance_scale", "--ckpt"]),
    ],
)
def test_what_cannot_be_is_refused(refused, flags, says):
    refused("samplers", *flags, says=says)
