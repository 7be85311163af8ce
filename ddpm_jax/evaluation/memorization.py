"""Whether samples are copies of training images: three tests on nearest neighbours, one on bits.

Each test has its own null hypothesis, and each compares with held-out images what nearness to
training images alone cannot say, because samples of a good model are near to training images too.

  Copies. The ratio of a sample, its distance to the nearest training image over that to the nearest
  held-out image, is compared with the ratios of training images themselves, each left out of its
  set. Null: the sample is as any image of the training distribution, so that its ratio is one more
  of theirs. It does not matter that the sets differ in size, that real data contain near-duplicates
  or that the held-out images come from elsewhere: the ratios of training images know it. Samples
  off the data, blurred or noisy, are about as far from all images, with ratios near 1, so that a
  bad model raises no alarm.

  Closeness. Training and held-out images, pooled, are exchangeable given the samples: any of them
  could have been the training images. The number of samples whose nearest image is a training one
  is compared with its distribution over all divisions of the pool. Null: the samples do not depend
  on which images were trained on. Nothing is assumed of the samples' quality.

  Split. The same for the images of the pool and their nearest others. Where this null is rejected,
  the held-out images differ from the training images as sets and closeness proves nothing.

  Bits. The bound of held-out images above that of training images (`likelihood_gap`).

Distances are Euclidean, of any features, pixels among them; float64, a tile of pairs at a time.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.pairwise import check_feature_sets, distance_tiles

FEWEST_TRAIN = 100  # of which the smallest ratios make a tail
PROBES = 10_000  # images of the pool whose own nearest neighbours are sought, at most
PERMUTATIONS = 999
BUFFER = 2**22  # images of all divisions that are drawn at a time
TAIL = 0.1  # the share of training images whose ratios a tail is fitted to
LEAST_P = 1e-9  # of one sample, also of an exact copy: no tail is known further out

# features [n, D] -> those of the mirrored images, [n, D]
Mirror = Callable[[np.ndarray], np.ndarray]


class Pair(NamedTuple):
    """A sample and its nearest training image."""

    sample: int  # its index
    train: int  # index of the training image
    held_out: int  # index of the nearest held-out image
    distance: float  # Euclidean, of the features, to the training image
    ratio: float  # of that to the distance to the held-out image
    p_value: float  # of a sample that is no copy to have a ratio as small; for this sample alone


class MemorizationAudit(NamedTuple):
    """The tests, and the pairs they stand on."""

    pairs: tuple[Pair, ...]  # of all samples, the smallest ratio first
    copies: tuple[Pair, ...]  # those that are copies, at most `level` / 2 of them wrongly
    copy_p_value: float  # that any sample is a copy
    rank_p_value: float  # the same by ranks alone, without a tail: at least 1 / (training images)
    share_nearest_train: float  # of the samples, whose nearest image is a training one
    expected_share: float  # if it were chance
    closeness_p_value: float  # that the samples lie closer to the training images
    split_p_value: float  # that the held-out images differ from the training images as sets
    # median distances to the nearest training image: of samples, training and held-out images
    median_distances: tuple[float, float, float]
    level: float  # what the verdict calls significant
    verdict: str  # one sentence


class LikelihoodGap(NamedTuple):
    """How many bits fewer the training images take than the held-out ones."""

    value: float
    standard_error: float
    p_value: float  # of a gap as large or larger, if the means are equal


class _Nearest(NamedTuple):
    """The nearest images of Q queries; distances are not squared."""

    train: np.ndarray  # int [Q], index of the training image
    to_train: np.ndarray  # float64 [Q]
    held_out: np.ndarray  # int [Q]
    to_held_out: np.ndarray  # float64 [Q]

    @property
    def ratios(self) -> np.ndarray:
        """Return the ratios [Q]: 1 where both distances are 0."""
        equal = self.to_train == self.to_held_out
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(equal, 1.0, self.to_train / self.to_held_out)


class _Probes(NamedTuple):
    """Images of the pool and the nearest others of each."""

    ids: np.ndarray  # int, increasing: training images, then held-out ones from n on
    of_train: _Nearest
    of_held_out: _Nearest


def audit(
    samples: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    mirror: Mirror | None = None,
    level: float = 0.05,
    seed: int = 0,
) -> MemorizationAudit:
    """Test whether samples are copies of training images, or closer to these than to others.

    Ratios p-values: the share of training images with a ratio as small, (1 + #) / (1 + n); below
    all of these by a tail, as the distance to the nearest of many points, in d dimensions, falls
    below x with a probability proportional to x^d. The exponent is Hill's (1975) of the smallest
    tenth, less one standard error. `copy_p_value` is Simes' (1986) of all samples, and `copies` are
    those of Benjamini & Hochberg (1995), for which conformal p-values such as these are valid
    (Bates et al. 2023). The other two tests draw `PERMUTATIONS` divisions of the pool.

    Args:
      samples: features [N, D].
      train: of the training images, [n, D], n at least 100.
      held_out: of images of the same kind that were not trained on, [m, D], m at least 2.
      mirror: of the features, where the model was trained on mirrored images too: a sample is as
        near to an image as its nearer mirror image.
      level: of the verdict, over both of its tests: false alarms of a model that has not memorized.
      seed: of the probes, if the pool has more than `PROBES`, and of the permutations.

    Raises:
      UsageError: sets too small, or a feature that is not finite.
    """
    what = "An audit of memorization"
    check_feature_sets(samples, train, held_out, at_least=2, what=what)
    if len(train) < FEWEST_TRAIN or not 0 < level < 1:
        raise UsageError(
            f"{what} of {len(train)} training images at the level {level}: give at least "
            f"{FEWEST_TRAIN} of them and a level above 0 and below 1."
        )
    random = np.random.default_rng(seed)
    found = _nearest(samples, train, held_out, mirror=mirror)
    probes = _probe(train, held_out, mirror, random)
    p_values, ranks = _p_values(probes.of_train.ratios, found.ratios)
    ratios, order = found.ratios, np.lexsort([found.to_train, found.ratios])
    pairs = tuple(
        Pair(
            int(i),
            int(found.train[i]),
            int(found.held_out[i]),
            float(found.to_train[i]),
            float(ratios[i]),
            float(p_values[i]),
        )
        for i in order
    )
    share, closeness = _closeness(found, len(train), len(held_out), random)
    result = MemorizationAudit(
        pairs=pairs,
        copies=pairs[: _count_rejected(p_values, level / 2)],
        copy_p_value=_simes(p_values),
        rank_p_value=_simes(ranks),
        share_nearest_train=share,
        expected_share=len(train) / (len(train) + len(held_out)),
        closeness_p_value=closeness,
        split_p_value=_split(probes, len(train), len(held_out), random),
        median_distances=tuple(
            float(np.median(each.to_train)) for each in (found, probes.of_train, probes.of_held_out)
        ),
        level=level,
        verdict="",
    )
    return result._replace(verdict=_verdict(result))


def likelihood_gap(train_bits: np.ndarray, held_out_bits: np.ndarray) -> LikelihoodGap:
    """Compare the bits of training images with those of held-out ones, by Welch's test.

    Args:
      train_bits: bits per dimension of images [n] that were trained on, n at least 2.
      held_out_bits: of images [m] of the same kind that were not, m at least 2.

    Raises:
      UsageError: fewer images.
    """
    if min(len(train_bits), len(held_out_bits)) < 2:
        raise UsageError(
            f"The bits of {len(train_bits)} training and {len(held_out_bits)} held-out images: "
            "give at least 2 of each."
        )
    gap = np.mean(held_out_bits) - np.mean(train_bits)
    error = math.hypot(
        *(np.std(x, ddof=1) / math.sqrt(len(x)) for x in (train_bits, held_out_bits))
    )
    tested = scipy.stats.ttest_ind(
        held_out_bits, train_bits, equal_var=False, alternative="greater"
    )
    return LikelihoodGap(float(gap), float(error), float(tested.pvalue))


def _nearest(
    queries: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    mirror: Mirror | None,
    own: tuple[np.ndarray, np.ndarray] | None = None,
) -> _Nearest:
    """Find the nearest images of each query.

    Args:
      own: for each query its index in `train` and in `held_out`, -1 where it is in none: it is no
        neighbour of itself, mirrored or not.
    """
    of_sets = []
    for i, images in enumerate((train, held_out)):
        excluded = np.full(len(queries), -1) if own is None else own[i]
        best = _nearest_of_set(queries, images, excluded)
        if mirror is not None:
            other = _nearest_of_set(mirror(queries), images, excluded)
            nearer = other[1] < best[1]
            best = tuple(np.where(nearer, b, a) for a, b in zip(best, other, strict=True))
        of_sets += [best[0], np.sqrt(best[1])]
    return _Nearest(*of_sets)


def _nearest_of_set(
    queries: np.ndarray, images: np.ndarray, excluded: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the nearest image to each query, and the squared distance."""
    index, squared = np.zeros(len(queries), np.int64), np.full(len(queries), np.inf)
    for rows, columns, tile in distance_tiles(queries, images):
        inside = (excluded[rows] >= columns.start) & (excluded[rows] < columns.stop)
        tile[inside, excluded[rows][inside] - columns.start] = np.inf
        here = tile.argmin(axis=1)
        values = tile[np.arange(len(tile)), here]
        nearer = values < squared[rows]
        index[rows] = np.where(nearer, here + columns.start, index[rows])
        squared[rows] = np.where(nearer, values, squared[rows])
    return index, squared


def _probe(
    train: np.ndarray, held_out: np.ndarray, mirror: Mirror | None, random: np.random.Generator
) -> _Probes:
    """Find the nearest others of all images of the pool, or of a random part of many."""
    total, first = len(train) + len(held_out), len(train)
    ids = np.arange(total)
    if total > PROBES:
        ids = np.sort(random.choice(total, PROBES, replace=False))
    own = ids[ids < first], ids[ids >= first] - first
    found = [
        _nearest(images[rows], train, held_out, mirror=mirror, own=excluded)
        for images, rows, excluded in (
            (train, own[0], (own[0], np.full(len(own[0]), -1))),
            (held_out, own[1], (np.full(len(own[1]), -1), own[1])),
        )
    ]
    return _Probes(ids, *found)


def _p_values(null: np.ndarray, ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return p-values of ratios [N] with the tail of the null's [n], and by their ranks alone."""
    null, n = np.sort(null), len(null)
    ranks = (1 + np.searchsorted(null, ratios, side="right")) / (n + 1)
    count = round(TAIL * n)
    threshold, smallest = null[count], null[0]
    if smallest == 0:  # duplicates in the training set: a ratio of 0 is no rare event
        return ranks, ranks
    # the nearest of all are often pairs, each the other's neighbour, with one distance: half as
    # many independent ones
    exponent = count / np.sum(np.log(threshold / null[:count])) * (1 - math.sqrt(2 / count))
    tail = np.maximum(LEAST_P, TAIL * (ratios / threshold) ** exponent)
    return np.where(ratios < smallest, np.minimum(tail, ranks), ranks), ranks


def _simes(p_values: np.ndarray) -> float:
    """Return the p-value of all p-values together: the least of N p_(k) / k."""
    ordered = np.sort(p_values)
    return float(min(1.0, (ordered * len(ordered) / np.arange(1, len(ordered) + 1)).min()))


def _count_rejected(p_values: np.ndarray, level: float) -> int:
    """Return how many are rejected with a false discovery rate of at most `level`."""
    ordered, count = np.sort(p_values), len(p_values)
    below = np.flatnonzero(ordered <= level * np.arange(1, count + 1) / count)
    return int(below[-1]) + 1 if len(below) else 0


def _closeness(
    found: _Nearest, num_train: int, num_held_out: int, random: np.random.Generator
) -> tuple[float, float]:
    """Return the share of queries whose nearest image is a training one, and its p-value.

    Several queries may have one nearest image, which is one label and not several.
    """
    decided = found.to_train != found.to_held_out  # an image that both sets have says nothing
    nearer = (found.to_train < found.to_held_out)[decided]
    if not len(nearer):
        return num_train / (num_train + num_held_out), 1.0
    image = np.where(nearer, found.train[decided], num_train + found.held_out[decided])
    images, queries = np.unique(image, return_counts=True)
    drawn = [labels[:, images] @ queries for labels in _divisions(num_train, num_held_out, random)]
    return float(nearer.mean()), _share_as_large(drawn, nearer.sum())


def _split(
    probes: _Probes, num_train: int, num_held_out: int, random: np.random.Generator
) -> float:
    """Return the p-value of how often an image's nearest other is of its own set.

    The two-sample test by nearest neighbours (Schilling 1986), over divisions of the pool.
    """
    nearest = np.concatenate(
        [
            np.where(each.to_train <= each.to_held_out, each.train, num_train + each.held_out)
            for each in (probes.of_train, probes.of_held_out)
        ]
    )
    observed = np.sum((probes.ids < num_train) == (nearest < num_train))
    drawn = [
        np.sum(labels[:, probes.ids] == labels[:, nearest], axis=1)
        for labels in _divisions(num_train, num_held_out, random)
    ]
    return _share_as_large(drawn, observed)


def _divisions(
    num_train: int, num_held_out: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield `PERMUTATIONS` random divisions of the pool, bool [B, n + m], True for training."""
    is_train = np.arange(num_train + num_held_out) < num_train
    step = max(1, BUFFER // len(is_train))
    for start in range(0, PERMUTATIONS, step):
        rows = min(step, PERMUTATIONS - start)
        yield random.permuted(np.tile(is_train, (rows, 1)), axis=1)


def _share_as_large(drawn: Sequence[np.ndarray], observed: int) -> float:
    """Return the p-value of a number among those of random divisions."""
    return float((1 + np.sum(np.concatenate(drawn) >= observed)) / (1 + PERMUTATIONS))


def _verdict(found: MemorizationAudit) -> str:
    """Return the outcome in a sentence; each of the two tests has half of the level."""
    first, count = found.pairs[0], len(found.pairs)
    shares = (
        f"{found.share_nearest_train:.0%} of the samples are nearest to a training image, "
        f"{found.expected_share:.0%} by chance (p = {found.closeness_p_value:.2g})"
    )
    closer = found.closeness_p_value <= found.level / 2
    different = found.split_p_value <= found.level / 2
    if found.copy_p_value <= found.level / 2:
        return (
            f"Copies: {len(found.copies)} of {count} samples are nearer to a training image than "
            f"chance explains (p = {found.copy_p_value:.2g}); sample {first.sample} is "
            f"{first.ratio:.2g} times as far from training image {first.train} as from any "
            f"held-out one; {shares}."
        )
    if closer and not different:
        return (
            f"Closer to the training images than to the held-out ones: {shares}; no single sample "
            f"is a copy (p = {found.copy_p_value:.2g})."
        )
    note = (
        f", which proves nothing, as the held-out images differ from the training images as sets "
        f"(p = {found.split_p_value:.2g})"
        if different
        else ""
    )
    return (
        f"No sign of memorization: no sample is a copy (p = {found.copy_p_value:.2g}); "
        f"{shares}{note}."
    )
