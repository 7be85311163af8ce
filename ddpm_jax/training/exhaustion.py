"""Remedies for a training step that runs out of memory."""


def remedies_of_a_step(
    *, batch_size: int, accumulate_steps: int, remat: str, parallel: str, devices: int
) -> str:
    """Return the remedies not applied yet, as changes of config fields.

    Args:
      batch_size: `train.batch_size`, over all devices.
      accumulate_steps: `optimizer.accumulate_steps`, the parts in which a device computes its
        share.
      remat: `model.remat`.
      parallel: `parallel`.
      devices: of all processes.
    """
    share = batch_size // devices
    parts = next((n for n in range(accumulate_steps + 1, share + 1) if share % n == 0), None)
    found = [f"lower train.batch_size (now {batch_size})"] if share > 1 else []
    if parts is not None:
        found.append(
            f"compute it in parts, one after the other, with optimizer.accumulate_steps={parts} or "
            "more"
        )
    if remat != "blocks":
        found.append("compute activations again in the backward pass with model.remat=blocks")
    if devices > 1 and parallel != "fsdp":
        found.append("split the state over the devices with parallel=fsdp")
    return ", ".join([*found, "or take a smaller network or a device with more memory"])
