"""The records of all parts as rows: what was measured, and with what it compares."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gpu_parts.plan import Record, median

NAMES = {"unet": "U-Net, training step", "dit": "DiT, training step"}
KINDS = {"eager": "PyTorch", "compiled": "torch.compile"}
OTHERS = {"cudnn": "cuDNN", "products": "products"}


class Row(NamedTuple):
    """One figure; what is not known is None."""

    what: str
    setting: str
    ours: str
    other: str | None = None
    ratio: float | None = None  # of their time to ours: above 1 ours is faster
    share: float | None = None  # of the rate of the device's own bfloat16 product


def rows(parts: Mapping[str, Record]) -> list[Row]:
    """Returns the table of all that was measured, and of why other things were not."""
    rate = parts.get("device", {}).get("matmul_flop_per_second", {}).get("bfloat16")
    made = [*_device(parts.get("device", {}))]
    for name in NAMES:
        made += _steps(name, parts.get(name, {}), parts.get(f"{name}_pytorch", {}), rate)
    made += _attention(parts.get("attention", {}))
    made += _sampling(parts.get("sampling", {}), rate)
    made += _resume(parts.get("resume", {}))
    made += _training(parts.get("training", {}))
    for name, record in parts.items():
        for why in ("skipped", "failed", "stopped", "note"):
            if why in record:
                made.append(Row(name, why, record[why]))
    return made


def markdown(rows: list[Row]) -> str:
    """Formats rows as a Markdown table."""
    lines = ["| | | ours | other | ratio | of matmul |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        share = "" if row.share is None else f"{100 * row.share:.1f} %"
        cells = [row.what, row.setting, row.ours, row.other or "", ratio, share]
        lines.append("| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |")
    return "\n".join(lines)


def _device(record: Record) -> Iterator[Row]:
    if "device" in record:
        versions = ", ".join(f"{name} {v}" for name, v in record["versions"].items() if v)
        driver = (record["driver"] or {}).get("driver_version")
        of_driver = f", driver {driver}" if driver else ""
        yield Row("device", record["device"], f"{versions}{of_driver}")
    for dtype, rate in record.get("matmul_flop_per_second", {}).items():
        yield Row("product of matrices", dtype, f"{rate / 1e12:.4g} TFLOP/s")


def _steps(name: str, ours: Record, theirs: Record, rate: float | None) -> Iterator[Row]:
    differences = theirs.get("same_output")
    if differences and "failed" not in theirs:
        shown = ", ".join(f"{dtype} {value:.1e}" for dtype, value in differences.items())
        if "loss_difference_after_two_steps" in theirs:
            shown += f"; loss after two steps {theirs['loss_difference_after_two_steps']:.1e}"
        yield Row(NAMES[name], f"difference from PyTorch ({theirs['peer']})", shown)
    for batch in ours.get("batches", []):
        setting = f"batch {batch['batch_size']}, {ours['dtype']}"
        if "refused" in batch:
            yield Row(NAMES[name], setting, batch["refused"])
            continue
        seconds = median(batch["seconds"])
        flops = ours["flop_per_image"]["gradient"] * batch["batch_size"]
        share = flops / seconds / rate if rate else None
        shown = f"{_ms(seconds)}, {batch['batch_size'] / seconds:,.0f} images/s"
        compared = {kind: found for kind in KINDS if (found := _of_size(theirs, kind, batch))}
        if not compared:
            yield Row(NAMES[name], setting, shown, share=share)
        for kind, found in compared.items():
            if "refused" in found:
                yield Row(NAMES[name], setting, shown, f"{KINDS[kind]}: {found['refused']}")
                continue
            other = median(found["seconds"])
            yield Row(
                NAMES[name], setting, shown, f"{KINDS[kind]} {_ms(other)}", other / seconds, share
            )
        if "attention_by_products_since" in batch:
            why = batch["attention_by_products_since"]
            yield Row(NAMES[name], setting, f"attention by products, since {why}")


def _of_size(theirs: Record, kind: str, batch: Mapping[str, Any]) -> Record | None:
    sizes = {found["batch_size"]: found for found in theirs.get(kind, [])}
    return sizes.get(batch["batch_size"])


def _attention(record: Record) -> Iterator[Row]:
    for shape in record.get("shapes", []):
        heads = f"{shape['heads']} x {shape['channels_of_a_head']}"
        setting = f"{shape['shape']}: {shape['images']} x {shape['tokens']} tokens, {heads}"
        refused = [OTHERS[name] for name in OTHERS if "refused" in shape[name]]
        for passed in ("forward", "forward_and_gradient"):
            what = f"attention, {passed.replace('_', ' ')}"
            cudnn, products = (median(shape[name].get(passed)) for name in ("cudnn", "products"))
            if cudnn and products:
                ours, other = f"cuDNN {_ms(cudnn)}", f"products {_ms(products)}"
                yield Row(what, setting, ours, other, products / cudnn)
            else:
                known = [
                    f"{OTHERS[n]} {_ms(t)}"
                    for n, t in zip(OTHERS, (cudnn, products), strict=True)
                    if t
                ]
                yield Row(what, setting, ", ".join(known), f"{', '.join(refused)} refused")


def _sampling(record: Record, rate: float | None) -> Iterator[Row]:
    for chain in record.get("chains", []):
        seconds = median(chain["seconds"])
        setting = f"{chain['sampler']}, {chain['steps']} steps, {record['images']} images"
        if chain["walked"] != chain["steps"]:
            setting += f" (from {chain['walked']} steps)"
        evaluations = chain["evaluations"] * chain["steps"] / chain["walked"]
        flops = record["flop_per_evaluation"] * record["images"] * evaluations
        shown = f"{record['images'] / seconds:,.3g} images/s"
        yield Row("U-Net, sampling", setting, shown, share=flops / seconds / rate if rate else None)


def _resume(record: Record) -> Iterator[Row]:
    for tried in record.get("tried", []):
        setting = f"killed at step {tried['killed_at_step']}, resumed at {tried['resumed_at_step']}"
        if tried["xla_flags"]:
            setting += f", {tried['xla_flags']}"
        same = f"step {record['steps']} is the same in {tried['arrays']} arrays, byte for byte"
        differs = f"different: {', '.join(tried['different']) or 'the records'}"
        yield Row("kill and resume", setting, same if tried["equal"] else differs)


def _training(record: Record) -> Iterator[Row]:
    if "steps" in record:
        shown = f"loss {_number(record['first_loss'])} to {_number(record['last_loss'])}, "
        shown += f"{_number(record['images_per_second'])} images/s"
        yield Row("training", f"{record['config']}, {record['steps']} steps", shown)
    if "bits_per_dim_at_most" in record:
        shown = f"at most {record['bits_per_dim_at_most']:.3f} ± {record['standard_error']:.3f}"
        yield Row("bits/dim", f"{record['evaluated_images']} held-out images", shown)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g} ms"
