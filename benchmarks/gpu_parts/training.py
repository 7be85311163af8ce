"""CIFAR-10 training in the time that is left, then bits/dim and a grid, all by the commands."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

from train_run import ROOT, TINY, Failed, Run, config_overrides, process_environment

from gpu_parts.plan import Plan, Record, Save, Skipped

AFTERWARDS = 50  # seconds kept for the bound and the grid
NO_DATA = (
    "There are no images: give --data DIR, a folder of CIFAR-10's pictures or the data_dir below "
    "which tensorflow-datasets has prepared cifar10."
)
FULL = {
    "model.dtype": "bfloat16",
    "optimizer.warmup_steps": 200,
    "ema.decay": 0.999,
    "ema.warmup": "true",
    "train.steps_per_call": 10,
    "train.log_every": 50,
    "train.sample_every": 0,
    "train.sample_steps": 50,
    "checkpoint.save_every": 1_000_000,  # only at the end
}


def data_fields(plan: Plan) -> dict[str, Any]:
    """The fields of the config that name the data.

    Raises:
      Skipped: there is none.
    """
    if plan.small:
        return {"data.data_dir": plan.folder / "digits"}
    if plan.data is not None:
        folder = pathlib.Path(plan.data).absolute()
        if (folder / "cifar10").is_dir():
            return {"data.name": "cifar10", "data.data_dir": folder}
        return {"data.name": "folder", "data.data_dir": folder, "data.holdout": 0.02}
    prepared = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    if (pathlib.Path(prepared).expanduser() / "cifar10").is_dir():
        return {"data.name": "cifar10"}
    raise Skipped(NO_DATA)


def measure(plan: Plan, save: Save) -> None:
    workdir = plan.folder / "training"
    environment = process_environment(
        plan.folder / "compiled", XLA_PYTHON_CLIENT_PREALLOCATE="false"
    )
    fields = data_fields(plan) | (TINY | {"train.num_steps": 20} if plan.small else FULL)
    arguments = config_overrides(fields)
    if not plan.small:
        arguments += ["--max_seconds", str(max(10, int(plan.left() - AFTERWARDS)))]
    config = "digits.py" if plan.small else "ddpm_cifar10.py"
    run = Run(workdir, arguments, config=config, environment=environment)
    run.start()
    run.finish()

    losses = [entry for entry in run.records() if "loss" in entry]
    record: Record = {
        "config": config,
        "data": run.data_line(),
        "steps": run.saved_steps()[-1],
        "images_per_second": losses[-1]["images_per_second"] if losses else None,
        "first_loss": losses[0]["loss"] if losses else None,
        "last_loss": losses[-1]["loss"] if losses else None,
    }
    save(record)
    commands = [_bound(workdir, held_out(record["data"]), plan), _grid(workdir, plan)]
    processes = [_start(command, environment) for command in commands]
    for command, process in zip(commands, processes, strict=True):
        printed, _ = process.communicate()
        if process.returncode:
            raise Failed(f"{command[0]} ended with {process.returncode}: {printed[-500:]}")
    (result,) = (workdir / "evaluation").glob("bpd_*.json")
    evaluated = json.loads(result.read_text())
    record["bits_per_dim_at_most"] = evaluated["bits_per_dim"]["mean"]
    record["standard_error"] = evaluated["bits_per_dim"]["standard_error"]
    record["evaluated_images"] = evaluated["num_images"]
    shutil.copy(workdir / "grid" / "grid.png", plan.out / "samples.png")
    record["grid"] = "samples.png"
    save(record)


def held_out(data_line: str) -> int:
    """The number of images that the run did not train on, by what it printed of its data."""
    found = re.search(r"test ([\d,]+)", data_line)
    if not found:
        raise Failed(f"No images are held out to evaluate the bound on: {data_line}")
    return int(found[1].replace(",", ""))


def _bound(workdir: pathlib.Path, available: int, plan: Plan) -> list[str]:
    images, stride = min(8 if plan.small else 256, available), 1 if plan.small else 20
    command = [
        "evaluate.py",
        "--ckpt",
        str(workdir),
        "--metric",
        "bpd",
        "--batch_size",
        str(images),
    ]
    return [*command, "--num_images", str(images), "--timestep_stride", str(stride)]


def _grid(workdir: pathlib.Path, plan: Plan) -> list[str]:
    command = ["sample.py", "--ckpt", str(workdir), "--sampler", "ddim", "--num_samples", "64"]
    return [*command, "--steps", "2" if plan.small else "50", "--out", str(workdir / "grid")]


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
