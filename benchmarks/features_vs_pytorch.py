"""Features of the FID against PyTorch: torch-fidelity's Inception-v3, eager, same weights, machine,
threads and precision.

    pip install torch torchvision torch-fidelity && python benchmarks/features_vs_pytorch.py
    [--batch_size 16] [--size 32] [--repeats 5]

From images in uint8 to 2,048 features and 1,008 logits on the host, with what belongs to it:
resizing to 299x299 as TensorFlow 1 does. The weights are random; both must return the same before
they are timed. Runs are interleaved, since other work on the machine disturbs all alike; medians of
images/s are reported with the fastest run, and images by second of the threads' processor time.
PyTorch is also given its weights and images in the layout channels_last, which torch-fidelity does
not take. Both use the GPU if both can, else the CPU with the same number of threads. A ratio above
1 means that ours is faster.
"""

import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable

import jax
import numpy as np
from comparison import TOLERANCE, relative_difference
from measuring import parser, report_table, setting, wall_and_processor_seconds

from ddpm_jax.measuring.feature_networks import load_features

try:
    import torch
    import torch_fidelity
    import torchvision
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
except ImportError as error:
    sys.exit(
        f"{error.name} is not installed: this benchmark compares with it; pip install torch "
        "torchvision torch-fidelity."
    )


def random_weights(path: pathlib.Path) -> None:
    """Writes a file of weights as PyTorch draws them, under the names of torch-fidelity's."""
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(
        weights=None, num_classes=1008, aux_logits=False, init_weights=False
    )
    torch.save(network.state_dict(), path)


def pytorch_extract(
    weights: pathlib.Path, device: str, *, channels_last: bool
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Returns the function of images [B, H, W, 3] to their features and logits on the host."""
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(weights),
    ).to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def extract(images: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            x = torch.tensor(images.transpose(0, 3, 1, 2), device=device)
            found = network(x.contiguous(memory_format=layout))
        return [array.cpu().numpy() for array in found]

    return extract


def main(argv: list[str] | None = None) -> None:
    """Runs the comparison and prints the table."""
    made = parser(__doc__)
    made.add_argument("--batch_size", type=int, default=16)
    made.add_argument("--size", type=int, default=32, help="height and width of the images")
    made.add_argument("--repeats", type=int, default=5)
    flags = made.parse_args(argv)

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    shape = (flags.size, flags.size, 3)
    images = np.random.default_rng(0).integers(0, 256, (flags.batch_size, *shape), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        weights = pathlib.Path(folder) / "inception.pth"
        random_weights(weights)
        ours = load_features(
            "inception", image_shape=shape, weights=weights, batch_size=flags.batch_size
        )
        tasks = {"ours": ours.extract} | {
            name: pytorch_extract(weights, device, channels_last=channels_last)
            for name, channels_last in (("torch-fidelity", False), ("channels_last", True))
        }
        found = {name: extract(images) for name, extract in tasks.items()}

    difference = max(
        relative_difference(a, b)
        for a, b in zip(found["ours"], found["torch-fidelity"], strict=True)
    )
    if not difference < TOLERANCE["float32"]:
        sys.exit(f"The features differ by {difference:.1e} on the same weights: not timed.")
    runs = {name: [] for name in tasks}
    for _ in range(flags.repeats):
        for name, extract in tasks.items():
            runs[name].append(wall_and_processor_seconds(lambda e=extract: e(images)))
    rows = [
        {
            "network": name,
            "images_per_second": flags.batch_size / statistics.median(wall for wall, _ in taken),
            "fastest": flags.batch_size / min(wall for wall, _ in taken),
            "per_processor_second": flags.batch_size / statistics.median(cpu for _, cpu in taken),
        }
        for name, taken in runs.items()
    ]
    report_table(
        {
            "batch_size": flags.batch_size,
            "size": flags.size,
            "relative_difference": difference,
            "torch": torch.__version__,
            "torch_fidelity": torch_fidelity.__version__,
            "threads": torch.get_num_threads(),
        }
        | setting(),
        table(rows),
        rows,
        flags.json,
    )


def table(rows: list[dict]) -> str:
    """Returns the rows as text, each with the ratio of ours to it."""
    ours, lines = rows[0], ["network          images/s  (fastest)   of a processor      ratio"]
    columns = ("images_per_second", "fastest", "per_processor_second")
    for row in rows:
        shown = "  ".join(f"{row[name]:9.2f}" for name in columns)
        ratios = "  ".join(f"{ours[name] / row[name]:.2f}" for name in columns)
        lines.append(f"{row['network']:15} {shown}      {ratios}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
