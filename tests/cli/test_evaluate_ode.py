"""`--metric bpd_ode`: what is recorded, that it goes on, and which network at which times the flow is made of."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import config as configs
from ddpm_jax.cli import evaluate, likelihood_ode
from ddpm_jax.cli.experiment import build
from ddpm_jax.diffusion.parameterization import make_denoiser

NAME = "bpd_ode_step10_ema_test_n5_rademacher2_rtol0.001_atol0.002_draws2_seed5"
ARGV = ["--metric", "bpd_ode", "--num_images", 5, "--draws", 2, "--seed", 5, "--batch_size", 2, "--probes", 2]
ARGV += ["--rtol", "1e-3", "--atol", "2e-3"]


@pytest.fixture(scope="module")
def five(trained, tmp_path_factory):
    """The likelihood of the first five test digits."""
    from ddpm_jax.cli import command

    out = tmp_path_factory.mktemp("five")
    assert command.run(evaluate.main, [str(a) for a in ["--ckpt", trained, *ARGV, "--out", out]]) == 0
    return out


def test_the_record_says_how_to_repeat_the_number_and_what_it_took(five, trained):
    record = json.loads((five / f"{NAME}.json").read_text())
    wanted = {
        "metric": "bpd_ode",
        "checkpoint": str(trained),
        "checkpoint_step": 10,
        "weights": "ema",
        "split": "test",
        "num_images": 5,
        "seed": 5,
        "draws": 2,
        "trace": "rademacher",
        "probes": 2,
        "rtol": 1e-3,
        "atol": 2e-3,
        "start": 0.0,
        "num_timesteps": 20,
        "dtype": "float32",
        "clip_denoised": False,
    }
    assert record.items() >= wanted.items()
    assert len(record["weights_sha256"]) == 64
    assert {"python", "ddpm-jax", "jax", "jaxlib", "flax", "numpy", "diffrax"} == set(record["versions"])
    with np.load(five / f"{NAME.replace('bpd_ode', 'bits_ode')}.npz") as arrays:
        draws, evaluations = np.float64(arrays["draws"]), arrays["num_evaluations"]
    assert draws.shape == evaluations.shape == (5, 2)
    bits = record["bits_per_dim"]
    assert bits["mean"] == pytest.approx(draws.mean())
    assert bits["standard_error"] == pytest.approx(draws.mean(axis=1).std(ddof=1) / 5**0.5)
    # Of two draws a and b the variance is (a - b)² / 2, and that of their mean half of it.
    assert bits["standard_error_draws"] == pytest.approx((np.diff(draws) ** 2 / 4).sum() ** 0.5 / 5)
    assert record["network_evaluations"] == {"mean": evaluations.mean(), "max": evaluations.max()}
    with Image.open(five / f"{NAME}.png") as picture:
        assert picture.height > 300


def test_given_again_it_is_read_and_stopped_it_goes_on(invoke, five, trained, tmp_path, monkeypatch):
    """The tally of the first two images is what a command leaves that was stopped after its first batch."""
    stream, begun = likelihood_ode.stream_bits, []

    def counted(*args, done, **kwargs):
        begun.append(done)
        return stream(*args, done=done, **kwargs)

    monkeypatch.setattr(likelihood_ode, "stream_bits", counted)
    again = invoke("evaluate", "--ckpt", trained, *ARGV, "--out", five)
    assert (again.code, begun) == (0, [])
    assert "5 images of test, 2 rademacher probes, 2 draws, rtol 0.001, atol 0.002" in again.out
    tally = f"{NAME.replace('bpd_ode', 'bits_ode')}.npz"
    with np.load(five / tally) as arrays:
        first_two = {name: a if name == "settings" else a[:2] for name, a in arrays.items()}
    np.savez(tmp_path / tally, **first_two)
    assert invoke("evaluate", "--ckpt", trained, *ARGV, "--out", tmp_path).code == 0
    assert begun == [2]
    assert json.loads((tmp_path / f"{NAME}.json").read_text()) == json.loads((five / f"{NAME}.json").read_text())


def test_other_weights_under_the_same_name_are_not_mixed_in(refused, five, trained, monkeypatch):
    monkeypatch.setattr("ddpm_jax.evaluation.results.weights_digest", lambda params: "0" * 64)
    refused("evaluate", "--ckpt", trained, *ARGV, "--out", five, says=["made otherwise", "weights_sha256", "--out"])


@pytest.fixture(scope="module")
def rescaled():
    """experiment(parameterization): 40 timesteps that the network knows as 0, 25, ... 975; and drawn parameters."""

    def experiment(parameterization):
        fields = configs.default_config()
        fields.data.update(name="digits", image_size=8, channels=1, flip=False)
        fields.diffusion.update(
            num_timesteps=40, schedule="cosine", rescale_timesteps=True, parameterization=parameterization
        )
        fields.train.sample_steps = 40
        # A norm of 32 groups takes an added time out of 32 channels; a scaling one lets it through.
        fields.model.update(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), scale_shift_norm=True)
        built = build(fields)
        params = built.init_params(jax.random.key(0))
        leaves, tree = jax.tree.flatten(params)  # some layers start at zero, and then x and t would not matter
        rng = np.random.default_rng(0)
        noisy = [leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
        return built, jax.tree.unflatten(tree, noisy)

    return experiment


@pytest.mark.parametrize("parameterization", ["eps", "x_0", "v", "mu"])
def test_at_the_chains_own_times_the_flow_has_the_epsilon_of_the_unclipped_chain(rescaled, parameterization):
    """So the network is told the rescaled time, μ means what it does in the chain from t = 0 on, nothing is cut."""
    experiment, params = rescaled(parameterization)
    chain = make_denoiser(
        lambda x, time: experiment.model.apply({"params": params}, x, time),
        experiment.schedule,
        parameterization=parameterization,
        variance="fixed_large",
        clip_denoised=False,
    )
    t = np.array([0, 1, 20, 38])
    x = np.random.default_rng(1).standard_normal((4, 8, 8, 1), np.float32) * 2
    wanted = chain(x, t)
    assert np.abs(wanted.x_0).max() > 1.5  # clipping would show
    found = experiment.eps(params, experiment.continuous())(x, np.float32(t))
    # ε from x_0 is a difference divided by √(1-ᾱ_0) = 0.04, of tables in float32.
    np.testing.assert_allclose(found, wanted.eps, rtol=2e-4, atol=2e-4 * np.abs(wanted.eps).max())
