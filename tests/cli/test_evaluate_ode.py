"""`--metric bpd_ode`: what is recorded, that it goes on, which network at which times the flow is
made of, and the conditions of a conditional network.
"""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.cli import evaluate
from ddpm_jax.diffusion import flow as flows
from ddpm_jax.diffusion.chain_flow import continued
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.datasets import load_split
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.measuring import likelihood_flow
from ddpm_jax.measuring.evaluation_settings import EvaluatedImages, FlowLikelihood

NAME = "bpd_ode_step10_ema_test_n5_rademacher2_rtol0.001_atol0.002_draws2_seed5"
ARGV = [
    "--metric",
    "bpd_ode",
    "--num_images",
    5,
    "--draws",
    2,
    "--seed",
    5,
    "--batch_size",
    2,
    "--probes",
    2,
]
ARGV += ["--rtol", "1e-3", "--atol", "2e-3"]


@pytest.fixture(scope="module")
def five(trained, tmp_path_factory):
    """The likelihood of the first five test digits."""
    from ddpm_jax.cli import command

    out = tmp_path_factory.mktemp("five")
    assert (
        command.run(evaluate.main, [str(a) for a in ["--ckpt", trained, *ARGV, "--out", out]]) == 0
    )
    return out


@pytest.mark.full
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
    assert {"python", "ddpm-jax", "jax", "jaxlib", "flax", "numpy", "diffrax"} == set(
        record["versions"]
    )
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


@pytest.mark.full
def test_given_again_it_is_read_and_stopped_it_goes_on(
    invoke, five, trained, tmp_path, monkeypatch
):
    """The tally of the first two images is what a command leaves that was stopped after its first
    batch."""
    stream, begun = likelihood_flow.stream_bits, []

    def counted(*args, done, **kwargs):
        begun.append(done)
        return stream(*args, done=done, **kwargs)

    monkeypatch.setattr(likelihood_flow, "stream_bits", counted)
    again = invoke("evaluate", "--ckpt", trained, *ARGV, "--out", five)
    assert (again.code, begun) == (0, [])
    assert "5 images of test, 2 rademacher probes, 2 draws, rtol 0.001, atol 0.002" in again.out
    tally = f"{NAME.replace('bpd_ode', 'bits_ode')}.npz"
    with np.load(five / tally) as arrays:
        first_two = {name: a if name == "settings" else a[:2] for name, a in arrays.items()}
    np.savez(tmp_path / tally, **first_two)
    assert invoke("evaluate", "--ckpt", trained, *ARGV, "--out", tmp_path).code == 0
    assert begun == [2]
    assert json.loads((tmp_path / f"{NAME}.json").read_text()) == json.loads(
        (five / f"{NAME}.json").read_text()
    )


@pytest.mark.full
def test_other_weights_under_the_same_name_are_not_mixed_in(refused, five, trained, monkeypatch):
    monkeypatch.setattr("ddpm_jax.experiments.loading.weights_digest", lambda params: "0" * 64)
    refused(
        "evaluate",
        "--ckpt",
        trained,
        *ARGV,
        "--out",
        five,
        says=["made otherwise", "weights_sha256", "--out"],
    )


@pytest.fixture(scope="module")
def rescaled():
    """experiment(parameterization): 40 timesteps that the network knows as 0, 25, ... 975; and
    drawn parameters."""

    def experiment(parameterization):
        fields = configs.default_config()
        fields.data.update(name="digits", image_size=8, channels=1, flip=False)
        fields.diffusion.update(
            num_timesteps=40,
            schedule="cosine",
            rescale_timesteps=True,
            parameterization=parameterization,
        )
        fields.train.sample_steps = 40
        # A norm of 32 groups takes an added time out of 32 channels; a scaling one lets it through.
        fields.model.update(
            ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), scale_shift_norm=True
        )
        built = build(fields)
        params = built.init_params(jax.random.key(0))
        # some layers start at zero, and then x and t would not matter
        leaves, tree = jax.tree.flatten(params)
        rng = np.random.default_rng(0)
        noisy = [leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
        return built, jax.tree.unflatten(tree, noisy)

    return experiment


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", ["eps", "x_0", "v", "mu"])
def test_at_the_chains_own_times_the_flow_has_the_epsilon_of_the_unclipped_chain(
    rescaled, parameterization
):
    """So the network receives the rescaled time, μ means what it does in the chain from t = 0 on,
    nothing is cut."""
    experiment, params = rescaled(parameterization)
    chain = make_process(experiment.chain, parameterization, "fixed_large").denoiser(
        lambda x, time: experiment.network.apply({"params": params}, x, time),
        experiment.schedule,
        clip="none",
    )
    t = np.array([0, 1, 20, 38])
    x = np.random.default_rng(1).standard_normal((4, 8, 8, 1), np.float32) * 2
    wanted = chain(x, t)
    assert np.abs(wanted.x_0).max() > 1.5  # clipping would show
    found = flows.network_eps(
        lambda x, time: experiment.apply(Weights(params), x, time),
        continued(experiment.chain),
        parameterization=parameterization,
    )(x, np.float32(t))
    # ε from x_0 is a difference divided by √(1-ᾱ_0) = 0.04, of tables in float32.
    np.testing.assert_allclose(found, wanted.eps, rtol=2e-4, atol=2e-4 * np.abs(wanted.eps).max())


class GaussianOfWhatItIsTold:
    """The exact ε of pixels N(m, S²) with m = 0.1 label + 0.5 low_res: a network whose likelihood
    has a closed form."""

    S = 0.3

    def __init__(self, continuous):
        self.continuous = continuous

    def apply(self, variables, x, time, condition):
        signal, noise = (
            level[:, None, None, None] for level in flows.noise_level(self.continuous, time)[1:]
        )
        mean = 0.1 * condition.label[:, None, None, None] + 0.5 * condition.low_res
        return noise * (x - signal * mean) / (signal**2 * self.S**2 + noise**2)


def told(images):
    """The image of half the size, rounded to 8 bits and enlarged by Pillow: float64 [N, 8, 8, 1] on
    [-1, 1]."""
    halves = np.rint(images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4), dtype=np.float32))
    enlarged = [Image.fromarray(half).resize((8, 8), Image.Resampling.BILINEAR) for half in halves]
    return np.stack(enlarged).astype(np.float64)[..., None] / 127.5 - 1


@pytest.mark.full
def test_the_likelihood_of_a_conditional_model_is_of_each_image_given_its_own_label_and_low_res(
    data_dir,
):
    fields = configs.default_config()
    fields.data.update(name="digits", data_dir=data_dir, image_size=8, channels=1, flip=False)
    fields.diffusion.update(num_timesteps=200, schedule="cosine")
    fields.train.sample_steps = 200
    fields.model.update(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    fields.condition.update(num_classes=10, low_res_factor=2)
    built = build(fields)
    model = GaussianOfWhatItIsTold(continued(built.chain))
    trained = TrainedModel(dataclasses.replace(built, network=model), Weights({}), 0, "ema")
    settings = FlowLikelihood(draws=16, rtol=1e-6, atol=1e-6, batch_size=6)
    found = likelihood_flow.measure_flow(trained, EvaluatedImages(num_images=12), settings)

    source = load_split(fields.data, "test")
    examples = [source[i] for i in range(12)]
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples])
    # q_start is N(√ᾱ_0 m, V), V = ᾱ_0 S² + 1 - ᾱ_0; uniform noise over a bin of 1/127.5 adds a
    # twelfth of its square.
    alpha_bar = float(built.schedule.alphas_bar[0])
    variance = alpha_bar * model.S**2 + 1 - alpha_bar

    def mean_bits(labels, low_res):
        mean = math.sqrt(alpha_bar) * (0.1 * labels[:, None, None, None] + 0.5 * low_res)
        squares = (images / 127.5 - 1 - mean) ** 2 + 1 / (12 * 127.5**2)
        nats = 0.5 * (squares / variance + math.log(2 * math.pi * variance)).mean(axis=(1, 2, 3))
        return nats / math.log(2) + math.log2(127.5)

    # 12 t-statistics of 15 degrees of freedom exceed 5 once in 500 seeds; 1e-3: N(0, I) for q(x_T).
    tolerance = 5 * found.bits.standard_error + 1e-3
    assert tolerance.max() < 0.03
    assert np.all(np.abs(found.bits.bits_per_dim - mean_bits(labels, told(images))) < tolerance)
    for others in ((np.roll(labels, 1), told(images)), (labels, np.roll(told(images), 1, axis=0))):
        moved = np.abs(mean_bits(*others) - mean_bits(labels, told(images)))
        assert np.count_nonzero(moved > 2 * tolerance) > 6  # a wrong label or image would show
    assert found.record["given"] == ["their label", "the image of lower resolution"]
    assert found.description.startswith(
        "12 images of test given their label and the image of lower resolution"
    )
