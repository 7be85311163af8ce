"""Networks with tensors of other shapes or types are refused in a sentence, or read."""

import pathlib

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.families import (
    ddpm_ports,
    ddpm_tensorflow,
    denoising_diffusion_pytorch,
    dit_checkpoints,
    edm_snapshots,
)
from ddpm_jax.families.foreign import Request
from ddpm_jax.interop.containers import Container, open_container

from .test_dit_checkpoints import draw

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/checkpoints"


def originals(goldens):
    raw = {name.removeprefix("params/"): x for name, x in goldens.items() if "params/" in name}
    averages = {f"{name}/ExponentialMovingAverage": x for name, x in raw.items()}
    return {"": raw | averages}


# family, size of the images, what decides its sizes
FAMILIES = {
    "tensorflow": (ddpm_tensorflow, 8, ("conv_in/W", "conv_out/W", "down_0/block_0/conv1/W")),
    "port": (ddpm_ports, 16, ("conv_in.weight", "conv_out.weight", "down.0.block.0.conv1.weight")),
    "dit": (
        dit_checkpoints,
        8,
        ("proj.weight", "table.weight", "linear.weight", "pos_embed", "qkv.bias"),
    ),
    "edm": (
        edm_snapshots,
        8,
        (
            *("8x8_conv.weight", "aux_conv.weight", "map_layer0.weight", "block0.conv1.weight"),
            *("resample_filter", "map_label.weight", "map_augment.weight", "qkv.weight"),
        ),
    ),
    "lucidrains": (
        denoising_diffusion_pytorch,
        8,
        ("init_conv.weight", "final_conv.weight", "time_mlp.1.weight", "mem_kv", "betas", "norm.g"),
    ),
}


@pytest.fixture(scope="module")
def groups(unet_goldens):
    return {
        "tensorflow": originals(unet_goldens),
        "port": open_container(GOLDENS / "pytorch_ports/ddim_training/ckpt.pth").groups,
        "dit": {"model": draw(), "ema": draw()},
        "edm": open_container(GOLDENS / "edm/network-snapshot-000000.pkl").groups,
        "lucidrains": open_container(GOLDENS / "lucidrains/model-1.pt").groups,
    }


def damaged(rng, old):
    """Return another array in the place of one; None for none."""
    kind, shape = rng.integers(5), list(old.shape)
    if kind == 0:
        return None
    if kind == 1 and shape:
        shape[rng.integers(len(shape))] = rng.choice([0, 1, 2, 7, 64])
        return np.broadcast_to(np.float32(0), shape)
    if kind == 2:
        return np.zeros(rng.choice([0, 1, 3], rng.integers(6)), np.float32)
    if kind == 3:
        return np.full(old.shape, rng.choice([np.nan, np.inf, -1, 1e30]), np.float32)
    return np.zeros(old.shape, np.int64)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_damage_is_a_sentence_or_harmless(name, groups, imported):
    family, size, deciding = FAMILIES[name]
    request = Request({"data.image_size": size} | ({"dit.num_heads": 2} if name == "dit" else {}))

    def recognised(groups):
        return family.recognise(Container(pathlib.Path("a"), "a file", groups, {}), request)

    network = imported(recognised(groups[name]), request).model.network
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        changed = {key: dict(group) for key, group in groups[name].items()}
        group = changed[rng.choice(list(changed))]
        names = [x for x in group if x.endswith(deciding)] if rng.random() < 0.8 else list(group)
        target = rng.choice(names or list(group))
        new = damaged(rng, np.asarray(group.pop(target)))
        if new is not None:
            group[target] = new
        try:
            found = recognised(changed)
            for tensors in found.weights.values() if found else ():
                found.read(tensors, network)
        except UsageError:
            refused += 1
    assert refused > 20
