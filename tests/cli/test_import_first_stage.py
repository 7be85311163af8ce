"""`ddpm-jax import-first-stage`: weights as diffusers names them become a run that
everything reads."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.loading import load_first_stage
from ddpm_jax.interop.autoencoder_kl import autoencoder_params_to_diffusers

from ..interop.test_flax_networks import packed

FIELDS = {
    "objective": "first_stage",
    "data": {"name": "digits", "image_size": 8, "channels": 1},
    "model": {
        "ch": 32,
        "ch_mult": (1, 1),
        "num_res_blocks": 1,
        "attn_resolutions": (),
        "dropout": 0.0,
    },
}


@pytest.fixture(scope="module")
def drawn():
    """The network and random parameters of it."""
    model = build(configs.from_dict(FIELDS, source="a test")).network
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))[
        "params"
    ]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture
def files(drawn, tmp_path):
    """A config, and random weights of its network in an NPZ file; returns their arguments and the
    parameters."""
    model, params = drawn
    np.savez(tmp_path / "vae.npz", **autoencoder_params_to_diffusers(params, model))
    (tmp_path / "mine.py").write_text(f"def get_config():\n    return {FIELDS}\n")
    return [
        "--config",
        tmp_path / "mine.py",
        "--weights",
        tmp_path / "vae.npz",
        "--out",
        tmp_path / "run",
    ], params


@pytest.mark.full
def test_the_weights_in_flax_are_the_same(invoke, files, tmp_path):
    argv, params = files
    with np.load(tmp_path / "vae.npz") as tensors:
        (tmp_path / "vae.msgpack").write_bytes(packed(tensors))
    argv = [tmp_path / "vae.msgpack" if arg == tmp_path / "vae.npz" else arg for arg in argv]
    result = invoke("import_first_stage", *argv)
    assert result.code == 0, result.err
    expected = {**params, "log_scale": np.float32(0.0)}
    jax.tree.map(np.testing.assert_array_equal, load_first_stage(tmp_path / "run").params, expected)


def test_the_weights_come_out_as_they_went_in(invoke, refused, files, tmp_path):
    argv, params = files
    result = invoke("import_first_stage", *argv)
    assert result.code == 0, result.err
    assert f"--config.first_stage.ckpt={tmp_path / 'run'}" in result.out
    loaded = load_first_stage(tmp_path / "run")
    assert (loaded.step, loaded.average) == (0, "raw")
    expected = {**params, "log_scale": np.float32(0.0)}  # which the file does not have
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    refused("import_first_stage", *argv, says=["holds a run already: name another directory"])


@pytest.fixture
def rewritten(files, tmp_path):
    """rewritten(change) -> the command's arguments, with change(tensors) of the weights."""
    argv, _ = files

    def rewrite(change):
        tensors = dict(np.load(tmp_path / "vae.npz"))
        change(tensors)
        np.savez(tmp_path / "vae.npz", **tensors)
        return argv

    return rewrite


def safetensors_file(tensors, dtype, name):
    """The file, by the words of the format: the header's length, the header, the numbers one after
    the other."""
    index, rest = {}, b""
    for key, value in tensors.items():
        content = value.astype(dtype).tobytes()
        index[key] = {
            "dtype": name,
            "shape": value.shape,
            "data_offsets": [len(rest), len(rest) + len(content)],
        }
        rest += content
    header = json.dumps(index).encode()
    return len(header).to_bytes(8, "little") + header + rest


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(ml_dtypes.bfloat16, "BF16"), ("<f2", "F16"), ("<f4", "F32"), ("<f8", "F64")],
)
def test_safetensors_of_16_32_and_64_bits_are_read_exactly(invoke, files, tmp_path, dtype, name):
    argv, _ = files
    tensors = dict(np.load(tmp_path / "vae.npz"))
    (tmp_path / "vae.safetensors").write_bytes(safetensors_file(tensors, dtype, name))
    result = invoke("import_first_stage", *argv, "--weights", tmp_path / "vae.safetensors")
    assert result.code == 0, result.err
    kernel = load_first_stage(tmp_path / "run").params["decoder"]["conv_out"]["kernel"]
    expected = tensors["decoder.conv_out.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, np.nan, x),
            ["holds nan", "the training has diverged"],
        ),
        (lambda x: x + np.float32(np.inf), ["holds inf"]),
        (
            lambda x: x.astype(np.float64) + 1e300,
            ["holds 1e+300", "beyond the largest number of float32"],
        ),
        (lambda x: x.astype(np.complex64), ["is of type complex64", "floating-point numbers"]),
        (lambda x: x > 0, ["is of type bool"]),
        (lambda x: x.astype(np.int8), ["is of type int8"]),
        (lambda x: x.astype("M8[s]"), ["is of type datetime64[s]"]),
        (lambda x: x.astype(str), ["is of type <U"]),
        (lambda x: x.astype(ml_dtypes.bfloat16), ["is of type |V2"]),
        (lambda x: x.astype(object), ["Python objects, which are never read"]),
    ],
)
def test_a_tensor_that_is_no_weights_is_refused_by_its_name(
    refused, rewritten, tmp_path, change, says
):
    name = "encoder.conv_in.bias"
    argv = rewritten(lambda tensors: tensors.update({name: change(tensors[name])}))
    named = [] if "objects" in says[0] else [f"{name} of the diffusers state dict"]
    refused("import_first_stage", *argv, says=[*named, *says])
    assert not (tmp_path / "run").exists()


def test_fp8_and_a_damaged_safetensors_file_are_refused(refused, files, tmp_path):
    argv, _ = files
    whole = safetensors_file({"a": np.zeros(3)}, np.float32, "F32")
    for content, says in (
        (whole.replace(b'"F32"', b'"F8_E4M3"'), ["'a' is of F8_E4M3, where one of BOOL, U8,"]),
        (whole[:-1], ["take 12 bytes, and 11 follow"]),
    ):
        header = content.index(b"}}") + 2 - 8
        (tmp_path / "vae.safetensors").write_bytes(header.to_bytes(8, "little") + content[8:])
        says = ["vae.safetensors is neither an NPZ nor a whole safetensors file", *says]
        refused("import_first_stage", *argv, "--weights", tmp_path / "vae.safetensors", says=says)


def test_what_cannot_be_read_is_refused(refused, files, tmp_path):
    argv, _ = files
    refused("import_first_stage", *argv[:4], says=["--out is missing"])
    refused("import_first_stage", *argv, "--config.model.ch=64", says=["64"])
    refused(
        "import_first_stage",
        *argv,
        "--config.model.num_res_blocks=2",
        says=["lacks decoder.up_blocks.1.resnets.2"],
    )
    refused(
        "import_first_stage",
        *argv,
        "--weights",
        tmp_path / "none",
        says=["cannot be read from", "No such file"],
    )
    unknown = [*argv, "--config.data.name=nonsense"]
    refused("import_first_stage", *unknown, says=["Unknown dataset 'nonsense'"])
    diffusion = [*argv, "--config.objective=diffusion"]
    refused("import_first_stage", *diffusion, says=["is that of a diffusion model"])
    assert not (tmp_path / "run").exists()
