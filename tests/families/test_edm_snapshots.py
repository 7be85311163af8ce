"""Networks of EDM: snapshots of its training loop and state dicts, read as models of ours.

The denoisers D(x; σ) are those of its own preconditioners, at the tolerances of float32 there.
"""

import functools
import pathlib

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion.schedules import single_levels
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.foreign_models import foreign_config
from ddpm_jax.families.edm_snapshots import recognise
from ddpm_jax.families.foreign import Request
from ddpm_jax.interop.containers import Container, open_container
from ddpm_jax.models.condition import Condition

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SNAPSHOT = GOLDENS / "checkpoints/edm/network-snapshot-000000.pkl"
NULL = Request({"condition.null_class": True})


def golden(name):
    """(what a network was given and made, its state dict)."""
    path = f"edm/network_{name}.npz" if name else "checkpoints/edm/network-snapshot.npz"
    arrays = dict(np.load(GOLDENS / path))
    tensors = {k.removeprefix("params/"): x for k, x in arrays.items() if k.startswith("params/")}
    return {key.removeprefix("denoiser/"): x for key, x in arrays.items()}, tensors


def of(tensors, **facts):
    return Container(
        pathlib.Path("a.pkl"), "", {"ema": tensors}, {f"ema.{k}": v for k, v in facts.items()}
    )


def denoised(imported, arrays, label):
    """D(x; σ): the x_0 that a model of ours predicts at levels of its process."""
    (model, params), sigma = imported, np.float64(arrays["sigma"])
    chain, log_sigma = model.chain, np.float32(np.log(sigma))
    if chain.has_levels_between:
        times = chain.network_times_of(log_sigma)
    else:
        times = chain.network_times(chain.nearest_steps(sigma)).astype(np.float32)

    @jax.jit
    def run(x, condition):
        schedule = single_levels(-log_sigma, times)
        network = functools.partial(model.apply, Weights(params["ema"]))
        denoiser = model.process.denoiser(network, schedule, clip="none").given(condition)
        return denoiser(x, np.arange(len(x))).x_0

    x_t = arrays["x"] / np.hypot(1, arrays["sigma"])[:, None, None, None]
    condition = Condition(label=label) if model.network.num_classes else None
    return run(x_t.transpose(0, 2, 3, 1), condition).transpose(0, 3, 1, 2)


def check_same(actual, expected, tolerance):
    error = np.abs(actual - expected) / (1 + np.abs(expected))
    assert error.max() < tolerance


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "preconditioner", "tolerance"),
    [
        ("ddpmpp", "VPPrecond", 5e-4),  # to whose time float32 adds 1e-4, times σ = 100
        ("ncsnpp", "VEPrecond", 3e-4),
        ("adm", "EDMPrecond", 1e-5),
        ("iddpm_adm", "iDDPMPrecond", 3e-4),  # of two outputs a channel, at the nearest steps
    ],
)
def test_denoisers_are_those_of_edm(name, preconditioner, tolerance, imported):
    arrays, tensors = golden(name)
    request = NULL if "class_labels" in arrays else Request()
    found = imported(recognise(of(tensors, _class_name=preconditioner), request), request)
    if not found.model.network.num_classes:
        return check_same(denoised(found, arrays, None), arrays["D"], tolerance)
    labels = np.int32(arrays["class_labels"].argmax(axis=1))
    check_same(denoised(found, arrays, labels), arrays["D"], tolerance)
    null = np.full_like(labels, found.model.network.num_classes)
    check_same(denoised(found, arrays, null), arrays["D_no_labels"], tolerance)


@pytest.mark.full
def test_a_snapshot_denoises_as_in_edm(imported):
    foreign = recognise(open_container(SNAPSHOT), Request())
    arrays, _ = golden("")
    labels = np.int32(arrays["class_labels"].argmax(axis=1))
    check_same(denoised(imported(foreign, Request()), arrays, labels), arrays["D"], 1e-5)


def test_what_a_snapshot_says_and_what_is_assumed():
    foreign = recognise(open_container(SNAPSHOT), Request())
    assert foreign.fields == {
        "objective": "diffusion",
        "data.channels": 3,
        "data.image_size": 8,
        "model.name": "song_unet",
        "model.ch": 8,
        "model.ch_mult": (1, 2),
        "model.num_res_blocks": 1,
        "model.attn_resolutions": (4,),
        "model.norm_eps": 1e-6,
        "edm_unet.temb_mult": 4,
        "condition.num_classes": 3,
        "edm_unet.augment_dim": 9,
        "edm_unet.embedding": "positional",
        "edm_unet.embedding_mult": 1,
        "edm_unet.encoder": "standard",
        "edm_unet.decoder": "standard",
        "edm_unet.resample_filter": (1, 1),
        "diffusion.process": "edm",
        "diffusion.parameterization": "edm",
        "diffusion.sigma_data": 0.5,
    }
    assumed = {name: guess.value for name, guess in foreign.assumed.items()}
    assert assumed["model.dropout"] == 0.13
    assert assumed["condition.null_class"] is False
    assert list(foreign.weights) == ["ema"]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ncsnpp", {"embedding": "fourier", "embedding_mult": 2, "encoder": "residual"}),
        ("skip", {"encoder": "skip", "decoder": "skip", "resample_filter": (1, 3, 3, 1)}),
        ("adm", {"temb_mult": 2}),
    ],
)
def test_names_and_shapes_say_which_network_it_is(name, fields):
    _, tensors = golden(name)
    foreign = recognise(Container(pathlib.Path("a.pt"), "", {"": tensors}, {}), Request())
    assert fields.items() <= {k.rpartition(".")[2]: v for k, v in foreign.fields.items()}.items()
    assert "does not tell" in foreign.assumed["diffusion.process"].why
    assert list(foreign.weights) == ["raw"]


def test_the_table_of_iddpms_levels_says_their_number_and_a_doubled_output_a_variance(imported):
    _, tensors = golden("adm")
    doubled = {
        name: np.concatenate([x, x]) if "out_conv" in name else x for name, x in tensors.items()
    }
    container = of(doubled | {"u": np.zeros(501, np.float32)}, _class_name="iDDPMPrecond", M=500)
    foreign = recognise(container, Request())
    model, _ = imported(foreign, Request())
    assert foreign.unread == ("u",)
    deeper = {f"params/{name}": x for name, x in container.groups["ema"].items()}
    fields = recognise(Container(pathlib.Path("a.npz"), "", {"": deeper}, {}), Request()).fields
    assert fields["diffusion.num_timesteps"] == 500
    assert model.chain.num_timesteps == 500
    assert model.process.variance.learned
    with pytest.raises(UsageError, match=r"u, a table .*process is 'edm': it can only be 'chain'"):
        recognise(of(tensors | {"u": np.zeros(501)}, _class_name="EDMPrecond"), Request())


def without_levels(name):
    return {key: x for key, x in golden(name)[1].items() if key != "u"}


CHAIN = {"process": "chain", "schedule": "cosine", "num_timesteps": 1000, "parameterization": "eps"}


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("iddpm_adm", None, CHAIN | {"variance": "learned_range", "loss": "hybrid"}),
        ("iddpm_adm", "chain", CHAIN | {"variance": "learned_range", "loss": "hybrid"}),
        ("adm", None, {"process": "edm", "parameterization": "edm", "levels": "lognormal"}),
        ("adm", "edm", {"process": "edm", "parameterization": "edm", "levels": "lognormal"}),
        ("adm", "vp", {"process": "vp", "parameterization": "eps", "levels": "uniform"}),
        ("adm", "ve", {"process": "ve", "parameterization": "score", "levels": "uniform"}),
        ("adm", "chain", CHAIN | {"variance": "fixed_large", "loss": "simple"}),
        ("adm", "flow", {"process": "flow", "levels": "uniform"}),
    ],
)
def test_what_is_assumed_of_a_state_dict_goes_with_its_process(name, asked, expected):
    request = Request({"diffusion.process": asked} if asked else {})
    container = Container(pathlib.Path("a.pt"), "", {"": without_levels(name)}, {})
    config = foreign_config(recognise(container, request), request).diffusion
    assert {field: config[field] for field in expected} == expected


def test_two_outputs_for_each_channel_are_of_a_chain_alone():
    container = Container(pathlib.Path("a.pt"), "", {"": without_levels("iddpm_adm")}, {})
    with pytest.raises(UsageError, match=r"a.pt has two outputs for each channel, .* 'vp': it can"):
        recognise(container, Request({"diffusion.process": "vp"}))


def test_released_networks_are_named():
    names = {
        "model.enc.64x64_conv.weight": (192, 3, 3, 3),
        "model.map_layer0.weight": (768, 192),
        "model.map_layer1.weight": (768, 768),
        "model.map_label.weight": (768, 1000),
        "model.out_conv.weight": (3, 192, 3, 3),
    }
    for level, width in enumerate((192, 384, 576, 768)):
        side = f"{64 >> level}x{64 >> level}"
        names |= {f"model.enc.{side}_block{i}.conv0.weight": (width, 1, 3, 3) for i in range(3)}
        names[f"model.enc.{side}_block0.conv1.weight"] = (width, width, 3, 3)
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in names.items()}
    foreign = recognise(of(tensors, _class_name="EDMPrecond"), Request())
    assert (foreign.released_as, foreign.published) == ("EDM's ADM of ImageNet at 64x64", "296M")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"_class_name": "ECMPrecond"}, "within 'ECMPrecond': of EDM those within EDMPrecond, "),
        ({"_class_name": "VPPrecond", "beta_d": 19.1}, "beta_d of the VPPrecond .* is 19.1, and"),
        ({"_class_name": "iDDPMPrecond", "C_1": 0.1}, "C_1 of the iDDPMPrecond of a.pkl is 0.1"),
    ],
)
def test_another_process_is_refused(facts, message):
    with pytest.raises(UsageError, match=message):
        recognise(of(golden("adm")[1], **facts), Request())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"map_layer0.weight": None}, "and no map_layer0, as networks of EDM2 do"),
        ({"map_layer0.weight": (64, 33)}, r"map_layer0.weight of .* has \(64, 33\), no multiples"),
        ({"out_conv.weight": (4, 32, 3, 3)}, "out_conv.weight .* has 4 outputs of 3 inputs"),
        ({"out_conv.weight": None}, "dec.8x8_aux_conv.weight of a.pkl is missing"),
        ({"enc.8x8_conv.weight": (32, 3)}, r"enc.8x8_conv.weight of a.pkl has the shape \(32, 3\)"),
        ({"enc.8x8_block0.conv1.weight": None}, "enc.8x8_block0.conv1.weight of a.pkl is missing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    tensors = dict(golden("adm")[1])
    for name, shape in changes.items():
        del tensors[f"model.{name}"]
        tensors |= {f"model.{name}": np.zeros(shape, np.float32)} if shape else {}
    with pytest.raises(UsageError, match=message):
        recognise(of(tensors), Request())


def test_other_files_are_not_of_this_family():
    groups = {"": {"enc.0.weight": np.zeros(1), "encoder.8x8_conv.weight": np.zeros(1)}}
    facts = {"unet/config.json": {"_class_name": "UNet2DModel"}, "a._class_name": "Linear"}
    assert recognise(Container(pathlib.Path("a"), "", groups, facts), Request()) is None
