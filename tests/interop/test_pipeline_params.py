"""The parameters of a pipeline: precision, memory, placement, and parts that do not fit together."""

import copy
import json
import pathlib
import random
import shutil
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.diffusers_directory import read_pipeline
from ddpm_jax.interop.pipeline_params import pipeline_networks, pipeline_params
from ddpm_jax.interop.pipeline_parts import Part

from ..conftest import GOLDENS

SD = GOLDENS / "sd"


def read(directory, **kwargs):
    pipeline = read_pipeline(directory)
    return pipeline_params(pipeline, pipeline_networks(pipeline), **kwargs)


@pytest.fixture
def halved(tmp_path):
    """The second golden directory with a VAE in float16."""
    directory = shutil.copytree(SD / "sd2", tmp_path / "sd")
    path = directory / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: x.astype(np.float16) for name, x in load_file(path).items()}, path)
    return directory


def assert_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def dtypes(params):
    return {leaf.dtype.name for leaf in jax.tree.leaves(params)}


@pytest.mark.parametrize(("part", "name"), [("unet", "U-Net"), ("vae", "VAE")])
def test_groups_that_do_not_divide_the_channels_are_refused_before_weights_are_read(part, name):
    pipeline = read_pipeline(SD / "sd2")
    getattr(pipeline, part).config["norm_num_groups"] = 7
    with pytest.raises(UsageError, match=rf"The {name} of .* cannot be .* in 7 groups"):
        pipeline_networks(pipeline)


@pytest.mark.full
def test_half_precision_is_kept_widened_or_changed(halved):
    full, kept, wide = read(SD / "sd2"), read(halved, dtype=None), read(halved)
    assert dtypes(kept.vae) == {"float16"}
    assert dtypes(kept.unet) == {"float32"}
    assert dtypes(wide.vae) == {"float32"}
    assert_equal(
        wide.vae, jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), full.vae)
    )
    assert_equal(wide.vae, kept.vae)
    narrow = read(halved, dtype=ml_dtypes.bfloat16)
    assert_equal(narrow.unet, jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), full.unet))
    assert dtypes(narrow) == {"bfloat16"}


@pytest.mark.parametrize("dtype", [None, np.float32])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_half_precision_that_is_not_finite_is_refused_by_name(halved, dtype, number):
    path = halved / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_in.bias"][1] = number
    save_file(tensors, path)
    with pytest.raises(UsageError, match=r"^decoder.conv_in.bias of the .* holds (nan|inf)"):
        read(halved, dtype=dtype)


def test_numbers_beyond_half_precision_are_refused_by_name(tmp_path):
    directory = shutil.copytree(SD / "sd2", tmp_path / "sd")
    path = directory / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_in.bias"][1] = 1e5
    save_file(tensors, path)
    read(directory, dtype=ml_dtypes.bfloat16)
    with pytest.raises(UsageError, match=r"holds 100000\.0, beyond the largest number of float16"):
        read(directory, dtype=np.float16)


def test_each_array_is_placed_and_let_go(halved):
    placed = []

    def place(array):
        assert array.flags.owndata or array.base.flags.owndata  # in memory of its own, not mapped
        placed.append(array.size)
        return jax.device_put(array)

    params = read(halved, place=place)
    leaves = jax.tree.leaves(params)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert sorted(placed) == sorted(leaf.size for leaf in leaves)
    assert_equal(params, read(halved))


@pytest.mark.full
def test_reading_needs_the_memory_of_one_model_and_one_tensor():
    pipeline = read_pipeline(SD / "sd1")
    networks = pipeline_networks(pipeline)
    parts = [pipeline.unet, pipeline.vae, pipeline.text_encoder]
    files = sum(part.tensors.nbytes for part in parts)
    largest = max(entry.size for part in parts for entry in part.tensors.values())
    pipeline_params(pipeline, networks)  # what is traced and cached once
    tracemalloc.start()
    params = pipeline_params(pipeline, networks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > 0.99 * files
    # a tensor as float32 and which of its numbers are finite; shapes and names of a tiny network
    assert peak < files + 4 * 4 * largest + 2_000_000
    maps = pathlib.Path("/proc/self/maps")
    assert not maps.exists() or str(SD / "sd1") not in maps.read_text()


def test_averages_are_taken_where_they_are_asked_for(tmp_path):
    directory = shutil.copytree(SD / "sd2", tmp_path / "sd")
    with pytest.raises(UsageError, match=r"has no moving averages of its U-Net \(unet_ema\)"):
        read(directory, average=True)
    shutil.copytree(directory / "unet", directory / "unet_ema")
    for path in (directory / "unet_ema").glob("*.safetensors"):
        save_file({name: x + 1 for name, x in load_file(path).items()}, path)
    before, averages = read(directory), read(directory, average=True)
    assert_equal(averages.unet, jax.tree.map(lambda x: x + 1, before.unet))
    assert_equal(averages.vae, before.vae)


def test_parts_that_do_not_fit_together_are_refused():
    first, second = read_pipeline(SD / "sd1"), read_pipeline(SD / "sd2")
    mixed = first.__class__(**vars(first) | {"text_encoder": second.text_encoder})
    with pytest.raises(UsageError, match="features of 48 numbers, and its text encoder gives 64"):
        pipeline_networks(mixed)
    vae = Part(first.vae.config | {"latent_channels": 8}, first.vae.tensors)
    with pytest.raises(UsageError, match="4 channels, and the latents of its VAE have 8"):
        pipeline_networks(first.__class__(**vars(first) | {"vae": vae}))
    wide = Part(first.vae.config | {"block_out_channels": [64, 64, 64]}, first.vae.tensors)
    changed = first.__class__(**vars(first) | {"vae": wide})
    networks = pipeline_networks(changed)
    with pytest.raises(UsageError, match="has shape"):
        pipeline_params(changed, networks)


VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    7,
    2**40,
    0.5,
    -2.5,
    1e300,
    "",
    "x",
    [],
    [1],
    [[1]],
    {},
    {"a": 1},
]


def damage(config, rng):
    """Change one field, or one number of one of its lists."""
    config = copy.deepcopy(dict(config))
    name = rng.choice([*config, "new_field"])
    value = config.get(name)
    if isinstance(value, list) and value and rng.random() < 0.5:
        value[rng.randrange(len(value))] = rng.choice(VALUES)
    elif rng.random() < 0.1:
        config.pop(name, None)
    else:
        config[name] = rng.choice(VALUES)
    return config


@pytest.mark.full
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_damaged_configs_are_refused_in_a_sentence_or_make_a_network(tmp_path, name):
    directory, rng = shutil.copytree(SD / name, tmp_path / "sd"), random.Random(5)
    files = [directory / f"{part}/config.json" for part in ("unet", "vae", "text_encoder")]
    files += [directory / "model_index.json", directory / "scheduler/scheduler_config.json"]
    for _ in range(120):
        file = rng.choice(files)
        original = file.read_text()
        changed = json.dumps(damage(json.loads(original), rng))
        file.write_text(changed)
        try:
            pipeline_networks(read_pipeline(directory))
        except UsageError:
            pass
        except Exception as error:
            raise AssertionError(f"{file.name}: {changed}") from error
        finally:
            file.write_text(original)
