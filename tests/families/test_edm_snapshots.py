"""Networks of EDM are refused by name: a snapshot of their own code, and their state dicts."""

import pathlib

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.families.edm_snapshots import recognise
from ddpm_jax.families.foreign import Request
from ddpm_jax.interop.containers import Container, open_container

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens/checkpoints/edm"


def test_a_snapshot_is_refused_by_its_network_and_preconditioner():
    container = open_container(GOLDENS / "network-snapshot-000000.pkl")
    with pytest.raises(
        UsageError,
        match=r"has a SongUNet of embedding_type 'positional', encoder_type 'standard', "
        r"decoder_type 'standard', resample_filter \[1, 1\] within EDMPrecond: that scales",
    ):
        recognise(container, Request())


@pytest.mark.parametrize(
    ("outer", "inner", "part", "message"),
    [
        ("VPPrecond", "DhariwalUNet", "model", "has a DhariwalUNet within VPPrecond"),
        ("Precond", "UNet", "unet", "has a UNet within Precond"),
    ],
)
def test_other_classes_are_named(outer, inner, part, message):
    for start in ("ema.", ""):
        facts = {f"{start}_class_name": outer, f"{start}{part}._class_name": inner}
        with pytest.raises(UsageError, match=message):
            recognise(Container(pathlib.Path("a.pkl"), "", {}, facts), Request())


@pytest.mark.parametrize("name", ["model.enc.32x32_conv.weight", "unet.enc.64x64_conv.weight"])
def test_a_state_dict_is_refused_by_a_block(name):
    groups = {"": {name: np.zeros((1, 1, 3, 3))}}
    with pytest.raises(UsageError, match=f"has {name}, a block of EDM's networks"):
        recognise(Container(pathlib.Path("a.pt"), "", groups, {}), Request())


def test_other_files_are_not_of_this_family():
    groups = {"": {"enc.0.weight": np.zeros(1), "encoder.8x8_conv.weight": np.zeros(1)}}
    facts = {"unet/config.json": {"_class_name": "UNet2DModel"}, "a._class_name": "Linear"}
    assert recognise(Container(pathlib.Path("a"), "", groups, facts), Request()) is None
