"""`--config.parallel=fsdp`: trains, draws, saves and resumes as pmap does; what it cannot do is
refused."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from .conftest import train_on_devices

AVERAGE = "--config.optimizer.clip_scope=average"
FSDP = "--config.parallel=fsdp"


@pytest.fixture(scope="module")
def by_average(train_with):
    """Ten steps under pmap on one device."""
    return train_with(AVERAGE)


def losses(workdir):
    return [
        json.loads(line)["loss"]
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
        if '"loss"' in line
    ]


def megabytes_on_each(announcement):
    return float(
        re.search(r"([\d.,]+) MB of state on each", announcement).group(1).replace(",", "")
    )


@pytest.mark.slow
def test_a_run_begun_under_pmap_goes_on_split_over_devices_and_back(
    invoke, by_average, config_file, tmp_path
):
    moved = pathlib.Path(shutil.copytree(by_average, tmp_path / "moved"))
    split = train_on_devices(
        4,
        "--config",
        config_file(12),
        "--workdir",
        moved,
        AVERAGE,
        FSDP,
        "--config.train.raw_grid=true",
    )
    assert "resuming at step 10 of 12" in split
    assert (moved / "samples" / "step_00000012.png").stat().st_size > (
        by_average / "samples" / "step_00000010.png"
    ).stat().st_size, "two grids, of the average and of the raw weights"
    back = invoke("train", "--config", config_file(14), "--workdir", moved, AVERAGE)
    assert back.code == 0
    assert "resuming at step 12 of 14" in back.err
    assert megabytes_on_each(split) < 0.5 * megabytes_on_each(back.err)

    stayed = pathlib.Path(shutil.copytree(by_average, tmp_path / "stayed"))
    assert invoke("train", "--config", config_file(14), "--workdir", stayed, AVERAGE).code == 0
    # Two and two Adam updates whose sums are taken in another order.
    np.testing.assert_allclose(losses(moved), losses(stayed), rtol=1e-4)


@pytest.mark.slow
def test_one_device_trains_alike_from_the_first_step(train_with, by_average):
    # The weights are drawn by another program; sums are taken in another order.
    np.testing.assert_allclose(losses(train_with(AVERAGE, FSDP)), losses(by_average), rtol=1e-4)


def test_clipping_each_devices_own_gradient_is_refused(refused, config_file, tmp_path):
    says = ["clip_scope is 'replica'", "parallel = 'fsdp'", "optimizer.clip_scope=average"]
    refused("train", "--config", config_file(), "--workdir", tmp_path / "run", FSDP, says=says)
    assert not (tmp_path / "run").exists()
