"""EDM's networks against NVlabs/edm: outputs of its own weights, its state dicts bit for bit.

The goldens are described in goldens/README.md. Their tolerance is that of float32 on both sides:
one unit in the last place of the frequencies moves outputs by 5e-5 at noise levels up to 999.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.edm import edm_params_from_state_dict, edm_params_to_state_dict
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.edm_unets import ADMUNet, SongUNet, check_adm_unet, check_song_unet

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/edm"
SMOOTH = (1, 3, 3, 1)
NETWORKS = {
    "ddpmpp": SongUNet(*(16, 16, (1, 2), 1, (8,)), num_classes=4, augment_dim=9),
    "ncsnpp": SongUNet(
        *(16, 16, (1, 2, 2), 1, (8,)),
        augment_dim=9,
        embedding="fourier",
        embedding_mult=2,
        encoder="residual",
        resample_filter=SMOOTH,
    ),
    "skip": SongUNet(
        *(16, 16, (1, 1, 2), 2, (16,)),
        out_channels=2,
        num_classes=3,
        embedding_mult=2,
        encoder="skip",
        decoder="skip",
        resample_filter=SMOOTH,
    ),
    "adm": ADMUNet(*(8, 32, (1, 4), 1, (4,)), num_classes=5, augment_dim=9, temb_mult=2),
}
TOLERANCES = {"ddpmpp": 1e-4, "ncsnpp": 5e-5, "skip": 1e-5, "adm": 1e-5}


@functools.cache
def golden(name):
    arrays = dict(np.load(GOLDENS / f"network_{name}.npz"))
    start = "params/model."
    tensors = {key.removeprefix(start): x for key, x in arrays.items() if key.startswith(start)}
    return arrays, tensors, edm_params_from_state_dict(tensors, NETWORKS[name])


def of_rows(network, params, rows):
    """Network and parameters for which class i is what those given were for the vector rows[i]."""
    scale = (rows.shape[1] / len(rows)) ** 0.5 if isinstance(network, SongUNet) else 1
    embedding = params["class_embedding"]
    kernel = scale * rows @ embedding["kernel"]
    classes = embedding | {"kernel": kernel.astype(np.float32)}
    return network.clone(num_classes=len(rows)), params | {"class_embedding": classes}


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("case", [0, 1])
def test_outputs_are_those_of_edm(name, case):
    """One case is not square, is not told its augmentation, and has class labels not one-hot."""
    arrays, _, params = golden(name)
    network, condition = NETWORKS[name], Condition(augment=arrays.get(f"{case}/augment_labels"))
    rows = arrays.get(f"{case}/class_labels")
    if rows is not None:
        network, params = of_rows(network, params, rows)
        condition = condition._replace(label=jnp.arange(len(rows)))
    x = arrays[f"{case}/x"].transpose(0, 2, 3, 1)
    out, inside = jax.jit(
        functools.partial(network.apply, capture_intermediates=True, mutable="intermediates")
    )({"params": params}, x, arrays[f"{case}/noise_labels"], condition)
    middle = inside["intermediates"]["mid_block_2"]["__call__"][0]
    for wanted, actual in (("out", out), ("middle", middle)):
        if f"{case}/{wanted}" in arrays:
            expected = arrays[f"{case}/{wanted}"].transpose(0, 2, 3, 1)
            error = np.abs(actual - expected) / (1 + np.abs(expected))
            assert error.max() < TOLERANCES[name], wanted


@pytest.mark.parametrize("name", NETWORKS)
def test_a_state_dict_is_read_and_written_back_bit_for_bit(name):
    _, tensors, params = golden(name)
    back = edm_params_to_state_dict(params, NETWORKS[name])
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value, strict=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample_filter": (1, 1)}, r"resample_filter of the .* is not the filter \(1, 1\)"),
        ({"encoder": "standard"}, "has, beyond the network's, enc.4x4_aux_down.resample_filter"),
        ({"decoder": "standard"}, r"has, beyond the network's, dec.16x16_aux_up"),
        ({"num_res_blocks": 3}, r"lacks enc.16x16_block2.* and \d+ more: give the network"),
        ({"embedding_mult": 1}, "map_label.bias .* has shape"),
    ],
)
def test_another_network_is_refused_by_the_first_tensor(changes, message):
    _, tensors, _ = golden("skip")
    with pytest.raises(UsageError, match=message):
        edm_params_from_state_dict(tensors, NETWORKS["skip"].clone(**changes))


@pytest.mark.parametrize("name", NETWORKS)
def test_goldens_are_of_networks_that_pass_the_checks(name):
    network = NETWORKS[name]
    check = check_song_unet if isinstance(network, SongUNet) else check_adm_unet
    check(network, network.resolution, network.resolution)
