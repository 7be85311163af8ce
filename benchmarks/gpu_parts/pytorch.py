"""Training steps of the same networks in PyTorch, eager and compiled, with our weights.

Timed only when both networks have returned the same on the same images, in both types.
"""

import copy
import importlib.util
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from comparison import TOLERANCE, relative_difference
from train_run import Failed

from gpu_parts.networks import CHECKED, DTYPES, Measured, measured
from gpu_parts.plan import (
    Plan,
    Record,
    Save,
    Skipped,
    Stopwatch,
    median,
    read_json,
    record_path,
    windows,
)

if TYPE_CHECKING:
    import torch


def measure_unet(plan: Plan, save: Save) -> None:
    _measure(measured("unet", small=plan.small), plan, save)


def measure_dit(plan: Plan, save: Save) -> None:
    _measure(measured("dit", small=plan.small), plan, save)


def _measure(of: Measured, plan: Plan, save: Save) -> None:
    if not importlib.util.find_spec("torch"):
        raise Skipped("PyTorch is not installed, so there is nothing to compare with.")
    if not of.outputs(plan.folder).exists():
        raise Skipped("Our network left no outputs to compare with.")
    import torch

    if plan.small:
        torch.set_num_threads(1)  # several wait for each other where other programs compute
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not plan.small:
        raise Skipped("PyTorch has no GPU here, so it would compare a GPU with a CPU.")
    network = _peer(of, plan, device)
    record: Record = {"peer": plan.peer, "device": device, "same_output": {}}
    for dtype in DTYPES:
        difference = _difference(of, network, plan, dtype, device)
        record["same_output"][dtype] = difference
        save(record)
        if not difference < TOLERANCE[dtype]:
            raise Failed(
                f"With the same weights the networks differ by {difference:.1e} in {dtype}, more "
                f"than {TOLERANCE[dtype]:.0e}: not timed."
            )
    timer = _Timer(of, network, plan, device)
    record |= {"layout": timer.choose_layout(), "eager": [], "compiled": []}
    for kind in ("eager", "compiled"):
        stopwatch = Stopwatch(plan)
        for size in of.batch_sizes:
            if not stopwatch.allows_another():
                record["note"] = f"There was no time for {kind} with a batch of {size}."
                break
            record[kind].append({"batch_size": size, **timer.step(size, compiled=kind != "eager")})
            save(record)
        record |= _loss_difference(of, record, plan)
        save(record)


def _loss_difference(of: Measured, record: Record, plan: Plan) -> Record:
    """How far the losses are apart after two steps, relative: by rounding, and by dropout."""
    ours = (read_json(record_path(of.name, plan.out)) or {}).get("batches", [])
    for mine, theirs in zip(ours[:1], record["eager"][:1], strict=False):
        if "losses" in mine and "losses" in theirs:
            a, b = mine["losses"][-1], theirs["losses"][-1]
            return {"loss_difference_after_two_steps": abs(a - b) / b}
    return {}


def _peer(of: Measured, plan: Plan, device: str) -> "torch.nn.Module":
    """PyTorch's network with our weights."""
    import torch
    from pytorch_peers import pytorch_dit, pytorch_unet

    if of.name == "unet":
        network = pytorch_unet(of.network, device, plan.peer)
    else:
        shape = {"image_size": of.image_size, "image_channels": of.channels}
        network = pytorch_dit(of.network, device, plan.peer, **shape)
    with np.load(of.weights(plan.folder)) as arrays:
        state_dict = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    network.load_state_dict(state_dict, strict=True)
    return network


def _told(of: Measured, size: int, device: str) -> dict[str, Any]:
    import torch

    labels = of.labels(size)
    return {} if labels is None else {"class_labels": torch.tensor(labels, device=device)}


def _difference(
    of: Measured, network: "torch.nn.Module", plan: Plan, dtype: str, device: str
) -> float:
    """How far the outputs are apart; float32 in its full precision."""
    import torch
    from pytorch_peers import channels_first

    batch = of.batch(CHECKED)
    x, t = channels_first(batch.x, device), torch.tensor(batch.t, device=device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network.eval()
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.no_grad(), autocast:
        theirs = network(x, t, **_told(of, CHECKED, device)).sample
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    with np.load(of.outputs(plan.folder)) as ours:
        return relative_difference(ours[dtype], theirs.float().cpu().numpy().transpose(0, 2, 3, 1))


class _Timer:
    """Times steps of training, each on a network of its own that starts from the same weights."""

    def __init__(self, of: Measured, network: "torch.nn.Module", plan: Plan, device: str):
        self._of, self._network, self._plan, self._device = of, network, plan, device
        self._channels_last = False

    def choose_layout(self) -> str:
        """Takes the faster layout for images, eager, of the two that convolutions may have."""
        if self._of.name == "unet":
            times = {}
            for self._channels_last in (False, True):
                step = self.step(self._of.batch_sizes[0], compiled=False)
                times[self._channels_last] = median(step.get("seconds")) or float("inf")
            self._channels_last = min(times, key=times.get)
        return "channels last" if self._channels_last else "contiguous"

    def step(self, size: int, *, compiled: bool) -> Record:
        """What a step takes, its first losses, and what its first call took."""
        import torch
        from pytorch_peers import pytorch_training_step

        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        network = copy.deepcopy(self._network).to(memory_format=layout)
        if compiled:
            torch._dynamo.reset()
            # Without a GPU the code generator is left out: it needs a C++ compiler and its time.
            backend = "aot_eager" if self._plan.small else "inductor"
            network = torch.compile(network, dynamic=False, backend=backend)
        step = pytorch_training_step(
            network,
            self._of.batch(size),
            "bfloat16",
            self._device,
            _told(self._of, size, self._device),
            layout=layout,
            fused=True,
        )

        def wait(loss: "torch.Tensor") -> None:
            if self._device == "cuda":
                torch.cuda.synchronize()

        start = time.perf_counter()
        try:
            losses = [step().item()]
            first_call = time.perf_counter() - start
            losses += [step().item() for _ in range(2)]
            seconds = windows(step, wait, self._plan, seconds=0.5)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return {"refused": "out of memory"}
        return {"seconds": seconds, "losses": losses, "first_call_seconds": first_call}
