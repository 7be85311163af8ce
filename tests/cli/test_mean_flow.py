"""A mean flow through the commands: trained, sampled in one or two steps, guided, refused."""

import json

import pytest

import ddpm_jax
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import find_config, override

FIELDS = {
    "diffusion.process": "flow",
    "diffusion.parameterization": "velocity",
    "diffusion.levels": "lognormal",
    "diffusion.clip": "none",
    "mean_flow.evaluations": "2",
}
ARGV = [f"--config.{name}={value}" for name, value in FIELDS.items()]
CLASSES = ["--config.condition.num_classes=10", "--config.condition.label_dropout=0.25"]


@pytest.mark.slow
def test_a_run_is_sampled_by_its_mean_velocity(invoke, refused, train_with, trained, tmp_path):
    run = train_with(*ARGV, *CLASSES)
    model = ddpm_jax.load(run)
    said = invoke("sample", "--ckpt", run, "--num_samples", 2, "--out", tmp_path / "own")
    assert "mean_flow, 2 steps, 2 network evaluations" in said.out + said.err
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < record["error"] < 10 for record in records if "error" in record)
    assert any("error" in record for record in records)

    # at one time it is a flow, for every other sampler; guidance within levels knows its times
    assert model.sample(2, sampler="dpmpp_2m", steps=2, labels=[1, 2], seed=0).shape == (2, 8, 8, 1)
    guided = ddpm_jax.Guidance(scale=2.0, interval=(0.0, 0.7))
    assert model.sample(2, labels=[1, 2], seed=0, guidance=guided).shape == (2, 8, 8, 1)

    for metric in ("bpd", "bpd_ode", "rate_distortion"):
        refused("evaluate", "--ckpt", run, "--metric", metric, says=["This model is a mean flow"])
    says = ["was not trained to predict it"]
    refused("sample", "--ckpt", trained, "--sampler", "mean_flow", "--steps", 2, says=says)
    says = ["a mean flow takes few steps as it is"]
    refused("distill", "--ckpt", run, "--out", tmp_path / "distilled", says=says)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"diffusion.process": "edm"}, "mean_flow.evaluations is 2, but the process of EDM has"),
        ({"diffusion.parameterization": "v"}, "a network that predicts v has none"),
        (
            {"model.name": "song_unet", "model.scale_shift_norm": "false"},
            "mean_flow.evaluations is 2, but DDPM",
        ),
        ({"mean_flow.evaluations": "0", "mean_flow.share": "0.5"}, "without mean_flow.evaluations"),
        ({"diffusion.weighting": "min_snr"}, "diffusion.weighting"),
    ],
)
def test_what_has_no_mean_velocity_is_one_sentence(changed, says):
    with pytest.raises(UsageError, match=says):
        build(override(find_config("digits"), FIELDS | changed))
