"""The processes of the family on the digits at equal training, over seeds of training.

    python benchmarks/process_family.py [--seeds 0 1 2 3 4] [--processes digits fm_digits]
    [--out DIR] [--json PATH] [--config.FIELD=VALUE]

Every config is trained with every seed by `train.py` and measured by `evaluate.py`: the Frechet
distance of pixels of 300 samples made with the same seed, by samplers of about 20 evaluations of
the network, and the bound of the held-out digits in bits/dim. Prints means and standard deviations
over the seeds. A run takes some minutes of two cores. What is in DIR is not done again: the same
command goes on.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

from measuring import ROOT, parser, report_table, setting
from train_run import config_overrides

from ddpm_jax.experiments.config import split_overrides

BOUND = ("--metric", "bpd", "--timestep_stride", "10")
# config -> sampler and steps
PROCESSES = {
    "digits": (("ddim", 20), ("dpmpp_2m", 20)),
    "edm_digits": (("heun", 10), ("dpmpp_2m", 20)),
    "fm_digits": (("euler", 20), ("dpmpp_2m", 20)),
    "vdm_digits": (("dpmpp_2m", 20),),
    "meanflow_digits": (("mean_flow", 1), ("mean_flow", 2), ("mean_flow", 4), ("euler", 20)),
}
WITHOUT_BOUND = ("meanflow_digits",)


def command(script: str, *arguments: Any) -> None:
    ran = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], cwd=ROOT)
    if ran.returncode:
        sys.exit(f"{script} did not succeed: see above.")


def measured(run: pathlib.Path, name: str, arguments: Iterable[Any]) -> dict[str, Any]:
    """Returns the record of an evaluation, which is made where it is not there."""
    out = run / "family" / name
    if not list(out.glob("*.json")):
        command("evaluate.py", "--ckpt", run, "--out", out, *arguments)
    (path,) = out.glob("*.json")
    return json.loads(path.read_text())


def measure(
    config: str, seed: int, directory: pathlib.Path, overrides: Sequence[str]
) -> dict[str, float]:
    """Trains, where that is not done, and returns what was measured by name."""
    run = directory / f"{config}_{seed}"
    command("train.py", "--config", config, "--workdir", run, f"--config.seed={seed}", *overrides)
    found = {}
    for sampler, steps in PROCESSES[config]:
        arguments = ("--sampler", sampler, "--steps", steps, "--num_samples", 300, "--seed", seed)
        record = measured(run, f"{sampler}_{steps}", ("--metric", "frechet_pixels", *arguments))
        found[f"{sampler}, {steps} steps"] = record["frechet_samples"]
    if config not in WITHOUT_BOUND:
        bound = measured(run, "bound", (*BOUND, "--seed", seed))
        found["bits/dim"] = bound["bits_per_dim"]["mean"]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    made.add_argument("--processes", nargs="+", choices=PROCESSES, default=list(PROCESSES))
    made.add_argument("--out", metavar="DIR", help="keep the runs there")
    fields, rest = split_overrides(sys.argv[1:] if argv is None else argv)
    arguments = made.parse_args(rest)
    overrides = config_overrides(fields)
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(arguments.out or temporary).resolve()
        rows = []
        for config in arguments.processes:
            by_seed = [measure(config, seed, directory, overrides) for seed in arguments.seeds]
            for name in by_seed[0]:
                rows.append({"config": config, "of": name, "values": [of[name] for of in by_seed]})
    lines = [f"{'':20} {'':20} {'mean':>8} {'deviation':>10}"]
    for row in rows:
        values = row["values"]
        deviation = f"{statistics.stdev(values):10.3f}" if len(values) > 1 else ""
        lines.append(
            f"{row['config']:20} {row['of']:20} {statistics.fmean(values):8.3f} {deviation}"
        )
    where = setting() | {"seeds": arguments.seeds}
    report_table(where, "\n".join(lines), rows, arguments.json)


if __name__ == "__main__":
    main()
