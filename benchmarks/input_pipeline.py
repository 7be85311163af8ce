"""How many images a second the input pipeline hands out, from the cache and decoded on the way.

    python benchmarks/input_pipeline.py                                    a generated folder of 32x32 PNG files
    python benchmarks/input_pipeline.py --name cifar10 --data_dir DIR      a prepared TFDS dataset

Timed is the loop that a training run has, `next(iterator)`, with each batch copied once as if to a
device. Then a stand-in for one takes `--device_rate` images a second: it sleeps for a batch's time,
from when the batch is there. The share of its time in which it waits for data is 0 where the input
is not the bottleneck.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import numpy as np
from PIL import Image

from ddpm_jax.data import pipeline, sources


def write_folder(folder: pathlib.Path, *, count: int, image_size: int) -> None:
    """Writes `count` PNG files of smooth noise, which compress about as photographs do, in ten
    class folders."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir()
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((image_size, image_size), Image.Resampling.BICUBIC).save(
            folder / str(i % 10) / f"{i:06}.png"
        )


def images_per_second(source, *, batch_size: int, seconds: float, repeats: int) -> list[float]:
    """Returns the rates of `repeats` measurements of at least `seconds` each, after one batch of
    warming up."""
    rates = []
    for seed in range(repeats):
        iterator = pipeline.train_iterator(source, batch_size=batch_size, seed=seed)
        next(iterator)
        batches, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            next(iterator)["image"].copy()
            batches += 1
        rates.append(batches * batch_size / (time.perf_counter() - start))
        iterator.close()
    return rates


def waiting_share(source, *, batch_size: int, rate: float, seconds: float) -> float:
    """Returns the share of the time that a device of `rate` images a second would wait for
    batches."""
    iterator = pipeline.train_iterator(source, batch_size=batch_size, seed=0)
    next(iterator)
    start = free = time.perf_counter()  # free: when the device has done what it was given
    waited = 0.0
    while free - start < seconds:
        next(iterator)["image"].copy()
        there = time.perf_counter()
        waited += max(0.0, there - free)
        free = max(free, there) + batch_size / rate
        # One batch ahead, as the training loop: the next is fetched while the device works on this
        # one.
        time.sleep(max(0.0, free - batch_size / rate - time.perf_counter()))
    iterator.close()
    return waited / (free - start)


def measure(options: dict, arguments: argparse.Namespace) -> list[dict]:
    rows = []
    for cache in ("always", "never"):
        start = time.perf_counter()
        source = sources.load(split="train", cache=cache, **options)
        load_seconds = time.perf_counter() - start
        rates = images_per_second(
            source,
            batch_size=arguments.batch_size,
            seconds=arguments.seconds,
            repeats=arguments.repeats,
        )
        rows.append(
            {
                "source": source.fingerprint,
                "cache": cache == "always",
                "batch_size": arguments.batch_size,
                "cores": len(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else os.cpu_count(),
                "load_seconds": round(load_seconds, 2),
                "images_per_second": [round(rate) for rate in rates],
                "device_rate": arguments.device_rate,
                "waiting_share": waiting_share(
                    source,
                    batch_size=arguments.batch_size,
                    rate=arguments.device_rate,
                    seconds=arguments.seconds,
                ),
            }
        )
    return rows


def report(rows: list[dict]) -> str:
    lines = [f"{rows[0]['source']}, batch size {rows[0]['batch_size']}, {rows[0]['cores']} cores"]
    waits = f"a device of {rows[0]['device_rate']:,.0f}/s waits"
    lines.append(
        f"{'cache':<8}{'load':>10}{'images/s, median':>20}{'lowest':>10}{'highest':>10}{waits:>32}"
    )
    for row in rows:
        rates = row["images_per_second"]
        lines.append(
            f"{'yes' if row['cache'] else 'no':<8}{row['load_seconds']:>8.1f} "
            f"s{int(np.median(rates)):>20,}{min(rates):>10,}{max(rates):>10,}{row['waiting_share']:>32.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--name", default="", help="TFDS dataset or 'folder'; a generated folder if left out"
    )
    parser.add_argument("--data_dir", default="", help="where it is")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--count", type=int, default=10_000, help="images in the generated folder")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument(
        "--device_rate", type=float, default=10_000, help="images a second of the stand-in device"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    options = {"name": arguments.name, "data_dir": arguments.data_dir}
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.name:
            write_folder(
                pathlib.Path(folder), count=arguments.count, image_size=arguments.image_size
            )
            options = {"name": "folder", "data_dir": folder}
        rows = measure(
            options | {"image_size": arguments.image_size, "channels": arguments.channels},
            arguments,
        )
    print(json.dumps(rows, indent=2) if arguments.json else report(rows))


if __name__ == "__main__":
    main()
