"""`init_from` files of another project: other classes, another image size, what does not fit."""

import functools

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import flatten, from_dict
from ddpm_jax.experiments.fine_tuning import find_beginning
from ddpm_jax.experiments.trainer import build_training, init_state
from ddpm_jax.interop.containers import open_container
from ddpm_jax.tasks.model_importing import import_model

from ..conftest import GOLDENS

PATH = GOLDENS / "checkpoints/openai/guided_64_like/model.pt"
BOTH = GOLDENS / "checkpoints/pytorch_ports/ddim_training/ckpt.pth"
TABLE = ("class_embedding", "embedding")


@functools.cache
def theirs():
    """Return the fields of the config of the files."""
    return dict(flatten(ddpm_jax.load(PATH).config))


def begin(tmp_path, **fields):
    """Return what a run begins with whose config is that of the files, but for these fields."""
    values = theirs() | {"init_from": str(PATH)} | fields
    values = {name: value for name, value in values.items() if value is not None}
    return find_beginning(build(from_dict(values, source="a test")), tmp_path, None)[0]


@pytest.mark.full
def test_rows_of_the_classes_of_the_files_are_kept_and_the_others_are_said(tmp_path):
    table = open_container(PATH).groups[""]["label_emb.weight"]
    classes = len(table)
    beginning = begin(tmp_path, **{"condition.num_classes": classes + 2})
    (note,) = beginning.notes
    assert note == (
        f"of class_embedding/embedding the rows of the classes 0 to {classes - 1} are kept, and "
        "the others are initialized, because the classes differ"
    )
    rows = beginning.given[TABLE]
    np.testing.assert_array_equal(rows.taken, np.arange(classes + 2) < classes)
    np.testing.assert_array_equal(rows.values[:classes], table)
    assert begin(tmp_path).notes == []


@pytest.mark.full
def test_a_u_net_takes_images_of_another_size_with_attention_on_the_same_levels(tmp_path):
    size, heights = theirs()["data.image_size"], theirs()["model.attn_resolutions"]
    smaller = {"data.image_size": size // 2}
    same = tuple(height // 2 for height in heights)
    assert begin(tmp_path, **smaller, **{"model.attn_resolutions": same}).notes == []
    given = ",".join(map(str, same))
    says = rf"data\.image_size is {size} there and {size // 2} here, .*attn_resolutions={given}\."
    with pytest.raises(UsageError, match=says):
        begin(tmp_path, **smaller)


@pytest.mark.full
@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model.num_res_blocks", 3, r"config group model\) .*; model\.num_res_blocks is \d there"),
        ("data.channels", 1, r"; data\.channels is 3 there and 1 here\."),
        ("diffusion.variance", "fixed_large", r"; diffusion\.variance is 'learned_range' there"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_field(tmp_path, field, value, says):
    others = {"diffusion.loss": "simple"} if field == "diffusion.variance" else {}
    with pytest.raises(UsageError, match=f"init_from: .* is of another architecture: .*{says}"):
        begin(tmp_path, **{field: value}, **others)


@pytest.mark.full
@pytest.mark.parametrize("is_imported", [False, True])
def test_the_averages_of_raw_weights_begin_as_the_average_in_the_files(tmp_path, is_imported):
    groups = open_container(BOTH).groups
    raw, ema = groups["0"]["module.conv_out.bias"], groups["4"]["conv_out.bias"]
    assert not np.array_equal(raw, ema)
    path = BOTH
    fields = dict(flatten(ddpm_jax.load(BOTH).config))
    if is_imported:
        path = tmp_path / "imported"
        import_model(BOTH, path)
    found = {}
    for init_from_raw in (True, False):
        config = from_dict(
            fields | {"init_from": str(path), "init_from_raw": init_from_raw}, source="a test"
        )
        model = build(config)
        beginning, _ = find_beginning(model, tmp_path / "run", None)
        training = build_training(model)
        state = init_state(model, training, None, beginning.given, beginning.average)
        found[init_from_raw] = [
            np.asarray(params["conv_out"]["bias"]) for params in (state.params, state.ema_params)
        ]
    np.testing.assert_array_equal(found[True], [raw, ema])
    np.testing.assert_array_equal(found[False], [ema, ema])
