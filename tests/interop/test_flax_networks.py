"""Stable Diffusion saved in Flax: read as the same model in PyTorch's files, bit for bit.

The goldens of PyTorch are converted here by the rule that diffusers documents for its conversion:
names with "_0" for the modules of lists, kernels with the axes of Flax, scale and embedding.
"""

import functools
import json
import re
import shutil

import flax.serialization
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.model_files import open_model
from ddpm_jax.interop.diffusers_directory import read_pipeline
from ddpm_jax.interop.flax_networks import open_flax
from ddpm_jax.interop.pipeline_params import pipeline_networks, pipeline_params
from ddpm_jax.interop.weight_files import find_weights

from ..conftest import GOLDENS

SD = GOLDENS / "sd/sd1"
FILES = {
    "unet": ("diffusion_pytorch_model", "diffusion_flax_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_flax_model"),
    "text_encoder": ("model", "flax_model"),
}


def in_flax(name, value):
    """Return the keys and the array of a tensor of PyTorch."""
    norm = re.search(r"norm\w*\.weight$", name) is not None
    stem, _, leaf = name.rpartition(".")
    if not stem.startswith("text_model."):  # whose layers are "layers/0"
        stem = re.sub(r"(\w+)\.(\d+)", r"\1_\2", stem)
    if leaf == "weight":
        leaf = "scale" if norm else "embedding" if "embedding." in f"{stem}." else "kernel"
        if "time_embedding" in stem:
            leaf = "kernel"
    if leaf == "kernel":
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return [*stem.split("."), leaf], np.ascontiguousarray(value)


def packed(tensors):
    tree = {}
    for name, value in tensors.items():
        (*modules, leaf), array = in_flax(name, value)
        group = tree
        for module in modules:
            group = group.setdefault(module, {})
        group[leaf] = array
    return flax.serialization.msgpack_serialize(tree)


@pytest.fixture
def directory(tmp_path):
    """Return a copy of the golden whose networks are in Flax, with its class names."""
    path = shutil.copytree(SD, tmp_path / "sd")
    index = json.loads((path / "model_index.json").read_text())
    for part, (torch_file, flax_file) in FILES.items():
        tensors = load_file(path / part / f"{torch_file}.safetensors")
        (path / part / f"{torch_file}.safetensors").unlink()
        (path / part / f"{flax_file}.msgpack").write_bytes(packed(tensors))
        index[part][1] = f"Flax{index[part][1]}"
    index["_class_name"] = f"Flax{index['_class_name']}"
    (path / "model_index.json").write_text(json.dumps(index))
    config = json.loads((path / "scheduler/scheduler_config.json").read_text())
    config["_class_name"] = f"Flax{config['_class_name']}"
    (path / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    return path


def test_every_tensor_is_that_of_pytorch(directory):
    there, here = read_pipeline(SD), read_pipeline(directory)
    assert here.kind == there.kind == "StableDiffusionPipeline"
    assert here.scheduler == there.scheduler
    for part in FILES:
        wanted, found = getattr(there, part).tensors, getattr(here, part).tensors
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found.shapes[name] == value.shape
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_the_networks_read_are_the_same(directory):
    params = [
        pipeline_params(pipeline, pipeline_networks(pipeline))
        for pipeline in map(read_pipeline, (SD, directory))
    ]
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), *params)


def test_old_names_of_attention_and_half_precision_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 3)).astype(ml_dtypes.bfloat16)
    tree = {"encoder": {"mid_block": {"attentions_0": {"query": {"kernel": kernel}}}}}
    path = tmp_path / "diffusion_flax_model.msgpack"
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    found = open_flax(path)
    (name,) = found
    assert name == "encoder.mid_block.attentions.0.query.weight"
    assert found[name].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found[name], kernel.T)


def test_files_of_pytorch_go_first(directory):
    shutil.copy(SD / "unet/diffusion_pytorch_model.safetensors", directory / "unet")
    assert next(iter(find_weights(directory / "unet").entries.values())).path.suffix != ".msgpack"
    assert find_weights(directory / "vae").keys()


def test_a_damaged_file_is_refused(directory):
    path = directory / "vae/diffusion_flax_model.msgpack"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"msgpack is no whole file of Flax \(it is cut off\)"):
        read_pipeline(directory)


def test_the_file_of_one_part_is_refused_by_its_folder(directory):
    with pytest.raises(
        UsageError, match=r"one part of a model, UNet2D\w+: give the directory that holds unet\."
    ):
        open_model(directory / "unet/diffusion_flax_model.msgpack")
