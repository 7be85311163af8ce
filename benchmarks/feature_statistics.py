"""What the metrics of features take: processor time, against that of the network, and memory.

    python benchmarks/feature_statistics.py [--metric fid] [--num 50000] [--num_reference 50000]
    [--dims 2048] [--images 16]

Random features of so many samples and of a reference, correlated and none below 0 as Inception's
are, go through the metrics named. Statistics of the reference are computed too, as where nothing is
in the cache. In the same process Inception-v3 with random weights maps a few images of 299x299, and
its processor time by image gives that of all samples. Printed: the share of the metrics in the sum
of both, and the most memory that the process had (resident, everything included) after the metrics
and before the network. The time of fid grows with N, that of kid and prdc with N².
"""

import resource
import statistics

import jax
import numpy as np
from measuring import parser, report_table, setting, wall_and_processor_seconds

from ddpm_jax.measuring.feature_metrics import make_plan, measure, parse_metrics
from ddpm_jax.measuring.feature_networks import FeatureNetwork
from ddpm_jax.measuring.feature_sets import FeatureSet
from ddpm_jax.models.inception import NUM_CLASSES, SIZE, Inception

REPEATS = 3  # of the network
PART = 1000  # features drawn at a time


def random_set(count: int, dims: int, seed: int, *, logits: bool) -> FeatureSet:
    """Returns random features of a set, float32 [count, dims]."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(64, dims)).astype(np.float32) / 8
    features = np.empty((count, dims), np.float32)
    for start in range(0, count, PART):
        part = features[start : start + PART]
        random.standard_normal(out=part, dtype=np.float32)
        part *= 0.3
        part += random.standard_normal((len(part), 64), np.float32) @ mixing + 0.4
        np.maximum(part, 0, out=part)
    drawn = random.standard_normal((count, NUM_CLASSES), np.float32) if logits else None
    return FeatureSet({"source": "random"}, dims, count, features=features, logits=drawn)


def inception_seconds(count: int) -> float:
    """Returns the processor seconds that Inception takes for an image, of a batch of `count`."""
    network = Inception()
    random = np.random.default_rng(0)
    images = random.normal(0, 0.5, (count, SIZE, SIZE, 3)).astype(np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images[:1])
    params = jax.tree.map(
        lambda leaf: random.normal(0, 0.02, leaf.shape).astype(np.float32), shapes
    )
    run = jax.jit(network.apply)
    taken = [
        wall_and_processor_seconds(lambda: jax.block_until_ready(run(params, images)))[1]
        for _ in range(REPEATS + 1)
    ]
    return statistics.median(taken[1:]) / count  # the first compiles


def main(argv: list[str] | None = None) -> None:
    """Runs the metrics and the network, and prints the table."""
    made = parser(__doc__)
    made.add_argument("--metric", default="fid")
    made.add_argument("--num", type=int, default=50_000, help="samples")
    made.add_argument("--num_reference", type=int, default=50_000)
    made.add_argument("--dims", type=int, default=2048)
    made.add_argument("--images", type=int, default=16, help="of a batch of the network")
    flags = made.parse_args(argv)

    names = parse_metrics(flags.metric)
    network = FeatureNetwork("inception", flags.dims, lambda images: None, {}, NUM_CLASSES)
    plan = make_plan(names, network, flags.num, flags.num_reference)
    samples = random_set(flags.num, flags.dims, 0, logits=plan.of_samples.logits)
    reference = random_set(flags.num_reference, flags.dims, 1, logits=False)
    rows = []
    for name in names:
        one = plan._replace(names=(name,))
        wall, processor = wall_and_processor_seconds(
            lambda one=one: measure(one, samples, reference)
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows.append({"metric": name, "processor_s": processor, "wall_s": wall, "peak_bytes": peak})
    of_network = inception_seconds(flags.images) * flags.num
    for row in rows:
        row["share"] = row["processor_s"] / (row["processor_s"] + of_network)
    sizes = {"num": flags.num, "num_reference": flags.num_reference, "dims": flags.dims}
    facts = sizes | {"inception_processor_s": of_network}
    report_table(facts | setting(), table(rows), rows, flags.json)


def table(rows: list[dict]) -> str:
    """Returns the rows as text."""
    lines = ["metric        processor s  share of the time  peak memory so far"]
    lines += [
        f"{row['metric']:12} {row['processor_s']:12.1f}  {row['share']:17.2%}  "
        f"{row['peak_bytes'] / 1e9:15.2f} GB"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
