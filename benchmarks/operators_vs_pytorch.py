"""Where the time of a training step on a CPU goes, by kind of operation, beside PyTorch's.

    pip install -e '.[parity]' && taskset -c 1 python benchmarks/operators_vs_pytorch.py
    [--network unet] [--batch_size 2] [--steps 5]

The networks, batches and steps of dit_vs_pytorch.py and unet_vs_pytorch.py. On one core, where what
runs at the same time cannot be counted twice, and the times of all kinds add up to that of a step.
Ours are the times of the loops of XLA's program as JAX's profiler records them, PyTorch's those
that an operator spends outside the operators it calls, as its profiler records them. XLA computes
several operations in one loop, which counts as what the loop contains first in the list of kinds.
"""

import collections
import dataclasses
import gzip
import json
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable

import jax
from comparison import our_update
from dit_vs_pytorch import dit_pair
from measuring import parser, report_table
from unet_vs_pytorch import CIFAR10, Pair, choose_device, parity_setting, unet_pair

from ddpm_jax import host_memory

try:
    import torch
    from pytorch_peers import pytorch_training_step
except ImportError as error:
    sys.exit(
        f"{error.name} is not installed: this benchmark compares with it; pip install -e "
        "'.[parity]'."
    )

# A kind, and what tells it in PyTorch's name of an operator, the first that fits.
KINDS = {
    "convolutions": r"convolution",
    "attention, its softmax in PyTorch's": r"scaled_dot_product|_flash_attention|bmm|softmax",
    "products of the other layers": r"addmm|aten::mm|linear",
    "Adam": r"_foreach|Optimizer|addcdiv|addcmul|lerp",
    "copies and transposes": r"copy|clone|contiguous|cat|empty|resize|zero_|fill_",
    "norms, activations, sums and the rest": r"",
}
CONVOLUTIONS, ATTENTION, PRODUCTS, ADAM, COPIES, REST = KINDS
Seconds = dict[str, float]  # of a step, by kind


@dataclasses.dataclass(frozen=True)
class Task:
    """A training step of both."""

    ours: Callable[[], object]
    program: str  # XLA's, as text
    theirs: Callable[[], object]


def make_task(pair: Pair) -> Task:
    """Compiles our step of two networks and builds theirs."""
    update, state, examples = our_update(pair.ours, pair.params, pair.batch, pair.condition)
    compiled = update.lower(state, *examples).compile()

    def ours() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, *examples))

    theirs = pytorch_training_step(pair.theirs, pair.batch, "float32", "cpu", pair.told)
    return Task(ours, compiled.as_text(), theirs)


def kinds_of_loops(program: str) -> dict[str, str]:
    """Returns the kind of each instruction of XLA's program, by its name."""
    bodies = {
        match[1]: match[2]
        for match in re.finditer(r"^%([\w.-]+) [^\n]*\{\n(.*?)^\}", program, re.M | re.S)
    }
    kinds = {}
    line = r"^ +(?:ROOT )?%([\w.-]+) = \S+ ([a-z-]+)\((.*)"
    for name, opcode, rest in re.findall(line, program, re.M):
        body = bodies.get((re.findall(r"calls=%([\w.-]+)", rest) or [""])[0], "")
        source = (re.findall(r'op_name="([^"]*)"', rest) or [""])[0]
        opcodes = {opcode, *re.findall(r"= \S+ ([a-z-]+)\(", body)}
        kinds[name] = _kind(opcodes, source)
    return kinds


def _kind(opcodes: set[str], source: str) -> str:
    """Returns the kind of a loop of these opcodes, given the path of its root in our source."""
    path = source.split("/")
    if "convolution" in opcodes or re.search(r"_convolve|_gradient|conv_general", source):
        return CONVOLUTIONS
    if "dot" in opcodes:
        # the products of a layer are in a module of its own
        in_a_block = len(path) > 1 and re.fullmatch(r"block_\d+|.*attn_\d+", path[-2])
        return ATTENTION if in_a_block else PRODUCTS
    if "jvp(" not in source:
        return ADAM
    if opcodes <= {"fusion", "copy", "transpose", "bitcast", "parameter", "concatenate", "slice"}:
        return COPIES
    return REST


def our_seconds(task: Task, steps: int) -> Seconds:
    """Returns what the loops of each kind take in a step of ours."""
    kinds = kinds_of_loops(task.program)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                task.ours()
        (path,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    threads = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X":
            threads[event["tid"]].append(event)
    found: Seconds = dict.fromkeys(KINDS, 0.0)
    for name, taken in (item for events in threads.values() for item in _by_itself(events)):
        if name in kinds:
            found[kinds[name]] += taken / steps / 1e6
    return found


def _by_itself(events: list[dict]) -> Iterable[tuple[str, float]]:
    """Yields the name of each event of a thread and its microseconds outside the events in it."""
    within: list[tuple[float, str]] = []  # the end and the name of those that have begun
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        name, start, taken = event["name"].removeprefix("end: "), event["ts"], event["dur"]
        while within and within[-1][0] <= start:
            within.pop()
        if within:
            yield within[-1][1], -taken
        yield name, taken
        within.append((start + taken, name))


def pytorch_seconds(task: Task, steps: int) -> Seconds:
    """Returns what the operators of each kind take in a step of theirs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            task.theirs()
    found: Seconds = dict.fromkeys(KINDS, 0.0)
    for operator in profile.key_averages():
        kind = next(kind for kind, names in KINDS.items() if re.search(names, operator.key))
        found[kind] += operator.self_cpu_time_total / steps / 1e6
    return found


def table(rows: list[dict]) -> str:
    """Formats the rows for reading."""
    lines = [f"{'':40}{'ours':>10}{'PyTorch':>10}"]
    for row in rows:
        lines.append(f"{row['kind']:40}{row['ours']:>8.3f} s{row['pytorch']:>8.3f} s")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> list[dict]:
    """Runs both steps under their profilers and prints the table."""
    made = parser(__doc__)
    made.add_argument("--network", choices=("dit", "unet"), default="dit")
    made.add_argument("--batch_size", type=int, default=2)
    made.add_argument("--steps", type=int, default=5, help="recorded steps of each")
    flags = made.parse_args(argv)
    if choose_device() != "cpu":
        sys.exit("This benchmark is for CPUs: hide the GPU with CUDA_VISIBLE_DEVICES=''.")
    host_memory.keep_freed()  # as train.py does, here for both

    if flags.network == "dit":
        task = make_task(dit_pair("S", flags.batch_size, "cpu"))
    else:
        task = make_task(unet_pair(CIFAR10, flags.batch_size, "cpu"))
    for _ in range(2):
        task.ours()
        task.theirs()
    ours, theirs = our_seconds(task, flags.steps), pytorch_seconds(task, flags.steps)
    rows = [{"kind": kind, "ours": ours[kind], "pytorch": theirs[kind]} for kind in KINDS]
    rows.append({"kind": "together", "ours": sum(ours.values()), "pytorch": sum(theirs.values())})
    where = {"network": flags.network, "batch_size": flags.batch_size, **parity_setting()}
    report_table(where, table(rows), rows, flags.json)
    return rows


if __name__ == "__main__":
    main()
