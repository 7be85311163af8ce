"""`benchmarks/gpu.py`: at toy size on a CPU, and what it does where time or a GPU is missing."""

import argparse
import importlib.util
import json
import math
import pathlib
import subprocess
import sys
import time

import gpu
import numpy as np
import orbax.checkpoint as ocp
import pytest
from gpu_parts import budget, resume, table
from gpu_parts.budget import PARTS, Part

ROOT = pathlib.Path(__file__).parents[2]
PEERS = {"unet_pytorch", "dit_pytorch"}
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # of two networks' outputs, relative


def run(out, *arguments):
    """Runs the script and returns what it printed and what it wrote."""
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(out), *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return ran, json.loads((out / "gpu.json").read_text())["parts"]


@pytest.mark.slow
def test_every_part_runs_at_toy_size(tmp_path):
    ran, parts = run(tmp_path / "out", "--small", "--peer", "port", "--minutes", "20")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert list(parts) == [part.name for part in PARTS]
    with_pytorch = importlib.util.find_spec("torch") is not None
    for name, record in parts.items():
        assert not record.keys() & {"failed", "stopped", "note"}, (name, record)
        assert ("skipped" in record) == (name in PEERS and not with_pytorch), (name, record)
        assert name in PEERS or record["seconds"] > 0

    for name in ("unet", "dit"):
        ours, theirs = parts[name], parts[f"{name}_pytorch"]
        assert ours["weights_to_pytorch_and_back"]
        assert all(batch["losses"][-1] < batch["losses"][0] for batch in ours["batches"])
        # Per image and parameter at least a product and a sum forward, and twice that back.
        assert ours["flop_per_image"]["gradient"] > 2 * ours["flop_per_image"]["forward"] > 0
        if with_pytorch:
            assert theirs["same_output"].keys() == TOLERANCE.keys()
            assert all(theirs["same_output"][dtype] < TOLERANCE[dtype] for dtype in TOLERANCE)
            sizes = [batch["batch_size"] for batch in ours["batches"]]
            for kind in ("eager", "compiled"):
                assert [batch["batch_size"] for batch in theirs[kind]] == sizes
    if with_pytorch:  # without dropout the two train alike, but for the roundings of bfloat16
        assert parts["dit_pytorch"]["loss_difference_after_two_steps"] < 2e-3

    assert parts["attention"]["shapes"][0]["products"]["forward"]
    assert [chain["sampler"] for chain in parts["sampling"]["chains"]] == [
        "ddim",
        "dpmpp_2m",
        "ancestral",
    ]

    (tried,) = parts["resume"]["tried"]
    assert parts["resume"]["equal"] is True
    assert tried["different"] == []
    assert tried["arrays"] > 100
    assert tried["resumed_at_step"] <= tried["killed_at_step"] < parts["resume"]["steps"]

    assert parts["training"]["last_loss"] < parts["training"]["first_loss"]
    assert 0 < parts["training"]["bits_per_dim_at_most"] < 8.5  # 8 bits need no model
    assert (tmp_path / "out" / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert "step 40 is the same in" in ran.stdout
    assert ran.stdout.count("| U-Net, sampling |") == 3


def test_a_part_that_does_not_fit_is_skipped_and_says_so(tmp_path):
    ran, parts = run(tmp_path, "--parts", "sampling,resume", "--minutes", "0.1")
    assert ran.returncode == 0
    assert parts["sampling"] == {
        "skipped": "It takes 25 s at least, and less time than that was left."
    }
    assert "| resume | skipped | It takes 35 s at least" in ran.stdout


def test_results_are_not_overwritten(tmp_path):
    run(tmp_path, "--parts", "resume", "--minutes", "0.1")
    before = (tmp_path / "gpu.json").read_bytes()
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "device", "--small", "--out", str(tmp_path)])
    assert (tmp_path / "gpu.json").read_bytes() == before


def test_a_part_is_ended_when_its_time_is_over_and_keeps_its_record(tmp_path):
    kept = {"device": "a device", "backend": "gpu"}
    (tmp_path / "device.json").write_text(json.dumps(kept))
    flags = argparse.Namespace(peer="port", data=None, small=True)
    late = time.time() - gpu.GRACE
    record = gpu._run(PARTS[0], flags, tmp_path, tmp_path, late)
    assert "ended when its time was over" in record["stopped"]
    assert record.items() >= kept.items()


def test_checkpoints_that_differ_in_one_bit_are_told_apart(tmp_path):
    states = {"first": np.arange(4.0), "same": np.arange(4.0), "other": np.arange(4.0)}
    states["other"].view(np.int64)[2] ^= 1
    with ocp.StandardCheckpointer() as writer:
        for name, array in states.items():
            writer.save(tmp_path / name, {"params": {"kernel": array}, "step": np.int32(7)})
    first, same, other = (resume.digests(tmp_path / name) for name in states)
    assert first == same
    assert {name for name in first if first[name] != other[name]} == {"['params']['kernel']"}


def test_what_later_parts_need_is_kept_for_them():
    first, second = Part("a", "a", least=10, most=60), Part("b", "b", least=30, most=math.inf)
    shares = {"minutes": budget.MINUTES, "small": False}
    assert budget.share(first, [second], 200, **shares) == 60
    assert budget.share(first, [second], 80, **shares) == 50
    assert budget.share(first, [second], 39, **shares) == 0
    assert budget.share(second, [], 39, **shares) == 39
    assert sum(part.least for part in PARTS) < 60 * budget.MINUTES


def test_ratios_and_shares_are_of_the_medians():
    parts = {
        "device": {"matmul_flop_per_second": {"bfloat16": 1000.0}},
        "dit": {
            "dtype": "bfloat16",
            "flop_per_image": {"gradient": 50.0},
            "batches": [{"batch_size": 4, "seconds": [0.5, 0.4, 9.0]}],
        },
        "dit_pytorch": {
            "compiled": [{"batch_size": 4, "seconds": [1.0, 0.1, 8.0]}],
            "eager": [{"batch_size": 4, "refused": "out of memory"}],
        },
    }
    eager, compiled = (row for row in table.rows(parts) if row.what == "DiT, training step")
    assert (eager.other, eager.ratio) == ("PyTorch: out of memory", None)
    assert (compiled.ratio, compiled.share) == (2.0, 50 * 4 / 0.5 / 1000)
    assert "| 2.00 | 40.0 % |" in table.markdown([compiled])
