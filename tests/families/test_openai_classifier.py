"""Noisy classifiers of guided-diffusion: what is recognised, and what is none of ours.

Their outputs are compared in tests/interop/test_openai.py.
"""

import dataclasses

import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.families import openai_unet
from ddpm_jax.families.foreign import Request
from ddpm_jax.families.openai_classifier import recognise
from ddpm_jax.models.classifier import Classifier

from .openai_files import changed, config_of, of, zeros

OPENAIS = {
    "time_embedding": "cos_sin",
    "norm_eps": 1e-5,
    "downsample_padding": "both",
    "scale_shift_norm": True,
    "resampling": "block",
}
TINY = Classifier(
    resolution=32,
    ch=32,
    ch_mult=(1, 1, 2),
    num_res_blocks=2,
    attn_resolutions=(16, 8),
    num_classes=10,
    pool="attention",
    dropout=0.0,
    **OPENAIS,
)
RELEASED = {
    "64x64_classifier": (
        {"resolution": 64, "ch_mult": (1, 2, 3, 4), "num_res_blocks": 4},
        65e6,
        "cosine",
    ),
    "512x512_classifier": (
        {"resolution": 512, "ch": 64, "ch_mult": (1, 2, 2, 4, 4, 8, 8), "time_channels": 128},
        54e6,
        "linear",
    ),
}


@pytest.fixture(scope="module")
def tensors():
    return zeros(TINY)


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_released_classifiers_are_known_by_their_sizes(name):
    fields, count, schedule = RELEASED[name]
    network = Classifier(
        num_classes=1000, pool="attention", attn_resolutions=(32, 16, 8), **fields, **OPENAIS
    )
    tensors = zeros(network)
    # of table 12 of the paper
    assert sum(x.size for x in tensors.values()) == pytest.approx(count, rel=1e-2)
    foreign = recognise(of(tensors), Request())
    assert foreign.released_as == name
    model = build(config_of(foreign))
    assert model.config.diffusion.schedule == schedule
    expected = network.clone(head_channels=64, dropout=0.0)
    for field in dataclasses.fields(Classifier):
        if field.name not in ("parent", "name"):
            there = getattr(model.network, field.name)
            assert there == getattr(expected, field.name), field.name


def test_the_image_size_follows_from_the_positions_that_are_learned(tensors):
    foreign = recognise(of(tensors), Request())
    assert foreign.fields["data.image_size"] == 32
    assert "data.image_size" not in foreign.assumed
    network = build(config_of(foreign)).network
    assert network == TINY.clone(num_heads=4)  # which is assumed


def test_other_pools_are_the_mean_or_refused(tensors):
    mean = recognise(of(zeros(TINY.clone(pool="mean", resampling="conv"))), Request())
    assert (mean.fields["model.pool"], mean.fields["model.resampling"]) == ("mean", "conv")
    assert mean.assumed["data.image_size"].value == 32  # the lowest of three levels has 8 x 8
    spatial = {name: x for name, x in tensors.items() if not name.startswith("out.")}
    spatial |= {"out.0.weight": np.zeros((2048, 300)), "out.2.weight": np.zeros((10, 2048))}
    with pytest.raises(UsageError, match="spatial pools are not known"):
        recognise(of(spatial), Request())


def test_where_the_levels_end_follows_from_widths_and_attention(tensors):
    assert recognise(of(tensors), Request()).fields["model.num_res_blocks"] == 2
    # Levels alike and without attention may have any length that divides all.
    alike = zeros(TINY.clone(ch_mult=(1, 1), attn_resolutions=(), num_res_blocks=5))
    found = {
        blocks: recognise(of(alike), Request({"model.num_res_blocks": blocks})).fields
        for blocks in (1, 2, 5, 4)
    }
    levels = {blocks: len(fields["model.ch_mult"]) for blocks, fields in found.items()}
    assert levels == {1: 6, 2: 4, 5: 2, 4: 6}  # of 4 blocks they cannot be


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out__2__positional_embedding": (64, 60)}, "60 positions: one more"),
        ({"out__2__positional_embedding": (64, 1)}, "1 positions"),
        ({"out__2__c_proj__weight": None}, r"lacks out\.2\.c_proj\.weight"),
        ({"out__2__extra__weight": (1,)}, r"has out\.2\.extra\.weight, which no"),
    ],
)
def test_what_is_none_of_our_classifiers_is_refused(tensors, changes, words):
    with pytest.raises(UsageError, match=words):
        recognise(of(changed(tensors, **changes)), Request())


def test_a_unet_is_no_classifier_nor_the_reverse(tensors):
    assert openai_unet.recognise(of(tensors), Request()) is None
    as_unet = tensors | {"output_blocks.0.0.in_layers.2.weight": np.zeros((1, 1, 3, 3))}
    assert recognise(of(as_unet), Request()) is None


def read(container):
    foreign = recognise(container, Request())
    return foreign.read(foreign.weights["raw"], build(config_of(foreign)).network)


@pytest.mark.full
def test_a_tensor_that_is_missing_or_of_another_shape_is_always_refused(tensors):
    for name in sorted(tensors)[::40]:
        for shape in (None, (5, *np.shape(tensors[name])[1:])):
            damaged = changed(tensors, **{name.replace(".", "__"): shape})
            with pytest.raises(UsageError):
                read(of(damaged))


@pytest.mark.full
def test_damaged_names_and_shapes_end_in_a_sentence_or_are_no_matter(tensors):
    """A thousand files, each with some tensors renamed, left out or of other shapes."""
    names, rng = sorted(tensors), np.random.default_rng(0)
    shapes = [(), (0,), (1,), (32,), (3, 3), (64, 32), (64, 64, 1), (32, 3, 3, 3), (1,) * 6]
    refused = 0
    for _ in range(1000):
        damaged = dict(tensors)
        for name in rng.choice(names, size=rng.integers(1, 4), replace=False):
            value = damaged.pop(str(name))
            kind = rng.integers(3)
            if kind == 0:
                damaged[str(name)] = np.zeros(shapes[rng.integers(len(shapes))])
            if kind == 1:
                number = str(rng.choice([0, 1, 7, 40, 10**9]))
                damaged[str(name).replace("1", number, 1)] = value
        for family in (recognise, openai_unet.recognise):
            try:
                family(of(damaged), Request())
            except UsageError:
                refused += 1
    assert refused > 100  # the rest is found when tensors are read, or has no effect
