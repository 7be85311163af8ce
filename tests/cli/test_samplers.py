"""`ddpm-jax samplers`: one row for every sampler and budget, on the mixture and on a
model."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import samplers

FLAGS = ["--samplers", "ddim,heun,ancestral", "--spacing", "logsnr"]
OF_A_MODEL = [
    ("--ckpt_step", 10),
    ("--raw_weights",),
    ("--num_samples", 300),  # the default, but given
    ("--num_reference", 100),
    ("--batch_size", 300),
    ("--data_dir", "somewhere"),
    ("--dtype", "bfloat16"),
    ("--variant", "fp16"),
    ("--prediction_type", "epsilon"),
    ("--preset", "lsun_cat"),
    ("--lora", "updates.safetensors"),
    ("--lora_scale", 1),
    ("--prompt", "a dog"),
    ("--negative_prompt", "a cat"),
    ("--labels", "3,5"),
    ("--low_res", "small.png"),
    ("--guidance_scale", 2),
    ("--guidance_interval", "0.2,0.8"),
    ("--guidance_rescale", 0.5),
    ("--classifier", "runs/classifier"),
    ("--weaker", "runs/weaker"),
    ("--weaker_step", 10),
    ("--clip", "static"),
]


@pytest.mark.slow
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


@pytest.mark.slow
def test_results_are_written_again_only_for_the_same_question(invoke, refused, tmp_path):
    argv = ["--samplers", "ddim", "--evaluations", "2", "--out", tmp_path]
    assert [invoke("samplers", *argv).code for _ in range(2)] == [0, 0]
    for other, says in (
        ("--samplers=ddim,heun", "samplers is ['ddim']"),
        ("--evaluations=3", "evaluations is [2]"),
    ):
        refused("samplers", *argv, other, says=[says, "--out"])


@pytest.mark.slow
def test_on_a_model_the_distance_and_the_times_are_there(invoke, trained, tmp_path):
    argv = [
        "--ckpt",
        trained,
        "--num_samples",
        8,
        "--evaluations",
        "3",
        "--samplers",
        "ddim",
        "--out",
        tmp_path,
    ]
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
        (["--evaluations", "0,5"], ["evaluations is 0,5", "whole numbers in 1.."]),
        (["--evaluations", "five"], ["evaluations is 'five'"]),
    ],
)
def test_what_cannot_be_is_refused(refused, flags, says):
    refused("samplers", *flags, says=says)


@pytest.mark.parametrize("flag", OF_A_MODEL)
def test_without_a_model_what_only_a_model_needs_is_refused(refused, flag):
    refused("samplers", *flag, says=[f"{flag[0]} is for a trained model", "--ckpt"])


def test_every_flag_concerns_the_mixture_or_is_refused_without_a_model(capsys):
    with pytest.raises(SystemExit):
        samplers.main(["--help"])
    listed = re.findall(r"^  (?:-h, )?(--\w+)", capsys.readouterr().out, re.MULTILINE)
    mixture = ["--ckpt", "--samplers", "--evaluations", "--spacing", "--seed", "--out"]
    assert sorted(listed) == sorted(
        [
            *mixture,
            "--platform",
            "--compilation_cache",
            "--help",
            *(name for name, *_ in OF_A_MODEL),
        ]
    )
