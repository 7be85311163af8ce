"""`init_from` files of another project: other classes, another image size, what does not fit."""

import functools

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import flatten, from_dict
from ddpm_jax.experiments.fine_tuning import find_beginning
from ddpm_jax.interop.containers import open_container

from ..conftest import GOLDENS

PATH = GOLDENS / "checkpoints/openai/guided_64_like/model.pt"
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
def test_what_does_not_fit_is_refused_by_its_field(tmp_path):
    says = r"init_from: .* is of another architecture: .*; model\.num_res_blocks is \d there"
    with pytest.raises(UsageError, match=says):
        begin(tmp_path, **{"model.num_res_blocks": theirs()["model.num_res_blocks"] + 1})
