"""Checkpoints of denoising-diffusion-pytorch, against outputs of that package's own code."""

import pathlib

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.fine_tuning import find_beginning
from ddpm_jax.experiments.foreign_models import foreign_config
from ddpm_jax.families.denoising_diffusion_pytorch import recognise
from ddpm_jax.families.foreign import Request
from ddpm_jax.interop.containers import Container, open_container
from ddpm_jax.samplers.loop import sample
from ddpm_jax.samplers.registry import make_sampler

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/checkpoints/lucidrains"
SIZE = Request(fields={"data.image_size": 8})
FILES = {
    "root mean square": ("model-1.pt", "forward.npz"),
    "groups": ("model_groups.pt", "forward_groups.npz"),
}


@pytest.fixture(scope="module")
def foreign():
    return recognise(open_container(GOLDENS / "model-1.pt"), SIZE)


@pytest.fixture(scope="module")
def tensors(foreign):
    return {name: np.asarray(value) for name, value in foreign.weights["raw"].items()}


@pytest.fixture(scope="module")
def tables():
    group = open_container(GOLDENS / "model-1.pt").groups["model"]
    return {name: np.asarray(group[name]) for name in ("betas", "loss_weight")}


def of(tensors, tables):
    whole = {f"model.{name}": value for name, value in tensors.items()} | tables
    return Container(pathlib.Path("model-1.pt"), "a file of PyTorch", {"model": whole}, {})


def images(array):
    return np.moveaxis(array, -3, -1)


@pytest.mark.parametrize("norms", FILES)
def test_outputs_are_those_of_the_package(norms, imported):
    file, golden = FILES[norms]
    foreign = recognise(open_container(GOLDENS / file), SIZE)
    model, params = imported(foreign, SIZE)
    golden = np.load(GOLDENS / golden)
    x, t = images(golden["x"]), golden["t"]
    apply = jax.jit(lambda params: model.network.apply({"params": params}, x, t))
    for kind in ("raw", "ema"):
        expected = images(golden[f"out_{kind}"])
        np.testing.assert_allclose(apply(params[kind]), expected, rtol=0, atol=1e-5, err_msg=kind)


def test_written_back_every_tensor_is_the_same(imported):
    for file, _ in FILES.values():
        foreign = recognise(open_container(GOLDENS / file), SIZE)
        model, params = imported(foreign, SIZE)
        for kind, tensors in foreign.weights.items():
            back = foreign.write(params[kind], model.network)
            assert back.keys() == tensors.keys()
            for name, value in tensors.items():
                np.testing.assert_array_equal(back[name], value, err_msg=name)


@pytest.fixture(scope="module")
def chain(foreign, imported):
    """Return chain(name, spacing, step_noise): all moments of one with the averaged weights."""
    model, params = imported(foreign, SIZE)
    x_T = images(np.load(GOLDENS / "chains.npz")["x_T"])

    def walk(name, spacing=None, step_noise=None):
        sampler = make_sampler(name, model.chain, steps=None if spacing else 20, spacing=spacing)
        denoiser = model.process.denoiser(
            lambda x, t: model.network.apply({"params": params["ema"]}, x, t),
            sampler.schedule,
            clip="static",
        )
        run = jax.jit(
            lambda x: sample(denoiser, sampler, x, step_noise=step_noise, trajectory=True)
        )
        return run(x_T).frames_x_t[1:]

    return walk


@pytest.mark.full
def test_an_ancestral_chain_with_given_noise_is_that_of_the_package(chain):
    golden = np.load(GOLDENS / "chains.npz")
    states = chain("ancestral", step_noise=images(golden["noise"]))
    expected = images(golden["ancestral_states"])
    np.testing.assert_allclose(states[golden["ancestral_kept"]], expected, rtol=0, atol=1e-4)


@pytest.mark.full
def test_a_chain_of_ddim_is_that_of_the_package(chain):
    golden = np.load(GOLDENS / "chains.npz")
    states = chain("ddim", spacing=golden["ddim_times"].tolist())
    np.testing.assert_allclose(states, images(golden["ddim_states"]), rtol=0, atol=1e-4)


def test_what_the_files_say_and_what_is_assumed(foreign):
    fields = foreign.fields
    assert (fields["model.ch"], fields["model.ch_mult"]) == (8, (1, 2, 1))
    assert fields["linear_unet.full_attention"] == (1,)
    assert (fields["linear_unet.heads"], fields["linear_unet.head_channels"]) == (2, 4)
    assert (fields["linear_unet.norm_groups"], fields["data.channels"]) == (0, 3)
    assert fields["diffusion.schedule"] == "sigmoid_alphas_bar"
    assert fields["diffusion.num_timesteps"] == 20
    assert fields["diffusion.parameterization"] == "v"
    assert "none of ours" in foreign.assumed["diffusion.weighting"].why
    assert foreign.assumed["diffusion.variance"].value == "fixed_small"
    groups = recognise(open_container(GOLDENS / "model_groups.pt"), SIZE)
    assert groups.assumed["linear_unet.norm_groups"].value == 8
    assert groups.fields["diffusion.schedule"] == "linear"
    betas = make_betas("linear", 50, beta_start=0.002, beta_end=0.4)
    ours = make_betas(
        "linear",
        50,
        beta_start=groups.fields["diffusion.beta_start"],
        beta_end=groups.fields["diffusion.beta_end"],
    )
    np.testing.assert_allclose(ours, betas, rtol=1e-12)
    assert groups.fields["diffusion.parameterization"] == "eps"
    assert groups.fields["diffusion.weighting"] == "min_snr"


def test_a_network_alone_does_not_tell_its_process(tensors):
    foreign = recognise(Container(pathlib.Path("a"), "", {"": tensors}, {}), Request())
    assert foreign.assumed["diffusion.schedule"].value == "sigmoid_alphas_bar"
    assert foreign.assumed["diffusion.parameterization"].value == "v"
    assert foreign.assumed["data.image_size"].value == 128


@pytest.mark.parametrize("predicted", ["eps", "x_0", "v"])
def test_what_is_predicted_is_told_by_the_weights_of_the_loss(tensors, predicted):
    betas = make_betas("cosine", 100)
    alphas_bar = np.cumprod(1 - betas)
    snr = alphas_bar / (1 - alphas_bar)
    loss_weight = {"eps": np.ones(100), "x_0": snr, "v": snr / (snr + 1)}[predicted]
    tables = {"betas": betas.astype(np.float32), "loss_weight": loss_weight.astype(np.float32)}
    foreign = recognise(of(tensors, tables), SIZE)
    assert foreign.fields["diffusion.parameterization"] == predicted
    assert foreign.fields["diffusion.schedule"] == "cosine"
    unknown = recognise(of(tensors, tables | {"loss_weight": loss_weight**2 + 7}), SIZE)
    assert unknown.assumed["diffusion.parameterization"].value == "v"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_conv.weight": (8, 6, 7, 7)}, "has 6 inputs, for self-conditioning"),
        ({"init_conv.weight": (16, 3, 7, 7)}, r"has 16 channels \(init_dim\) beside 8"),
        ({"init_conv.weight": (8, 3, 7)}, r"has the shape \(8, 3, 7\): .* networks of images"),
        ({"time_mlp.0.weights": (8,)}, r"time_mlp\.0\.weights of .* has frequencies"),
        ({"downs.0.2.mem_kv": None}, r"downs\.0\.2\.mem_kv of .* is missing: .* from version 1\.9"),
        ({"downs.1.2.mem_kv": (2, 4, 4, 32)}, r"downs\.1\.2\.mem_kv .* 4 keys of 4 heads with 32"),
        ({"final_conv.weight": (4, 8, 1, 1)}, "has 4 outputs of 3 inputs"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tensors, tables, changes, message):
    changed = {name: value for name, value in tensors.items() if name not in changes}
    changed |= {name: np.zeros(shape) for name, shape in changes.items() if shape}
    with pytest.raises(UsageError, match=message):
        recognise(of(changed, tables), SIZE)


def test_an_unknown_schedule_and_tensors_left_over_are_refused(tensors, tables, imported):
    with pytest.raises(UsageError, match=r"betas of .* are of none of the schedules"):
        recognise(of(tensors, tables | {"betas": tables["betas"] * 1.01}), SIZE)
    more = tensors | {"classes_emb.weight": np.zeros((10, 8), np.float32)}
    with pytest.raises(UsageError, match=r"beyond the network's, classes_emb\.weight"):
        imported(recognise(of(more, tables), SIZE), SIZE)


def test_other_files_are_not_of_this_family(tensors):
    without = {name: value for name, value in tensors.items() if name != "time_mlp.1.weight"}
    for groups in ({}, {"": without}, {"other": tensors}):
        assert recognise(Container(pathlib.Path("a"), "", groups, {}), Request()) is None


def test_fine_tuning_begins_with_the_average_and_says_what_the_weights_mean(tmp_path):
    path = GOLDENS / "model_groups.pt"
    foreign = recognise(open_container(path), SIZE)
    config = foreign_config(foreign, SIZE)
    config.init_from = str(path)
    config.linear_unet.norm_groups = 4
    beginning, record = find_beginning(build(config), tmp_path, None)
    assert any("linear_unet.norm_groups is 8 there and 4 here" in note for note in beginning.notes)
    assert record["weights"] == "ema"
    bias = foreign.weights["ema"]["final_conv.bias"]
    np.testing.assert_array_equal(beginning.given[("conv_out", "bias")], bias)
