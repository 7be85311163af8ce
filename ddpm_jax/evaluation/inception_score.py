"""The Inception Score: how surely, and how variously, a classifier labels images.

Salimans et al. 2016, section 4. It sees no real images, and depends on the classifier: with the
Inception network of the FID it is the field's number.
"""

from typing import NamedTuple

import numpy as np
import scipy

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.pairwise import check_feature_sets


class InceptionScore(NamedTuple):
    """The mean over splits of the images."""

    value: float  # in 1..K
    deviation: float  # standard deviation over splits, that of their population (N, not N - 1)


def inception_score(
    logits: np.ndarray, *, splits: int = 10, shuffle: bool = True, seed: int = 2020
) -> InceptionScore:
    """Return exp(E KL(p(y|x) || p(y))), its mean and deviation over splits.

    p(y) is the mean over the images of a split; split i of N images has those from i N // splits to
    (i + 1) N // splits. The score of a split grows with its size: N / splits images in each is part
    of the protocol, and so are shuffle and seed, which with the defaults are torch-fidelity's.

    Args:
      logits: float [N, K], before the softmax.
      splits: parts of the images.
      shuffle: whether the images are permuted before they are split.
      seed: of the permutation, by MT19937.

    Raises:
      UsageError: fewer images than splits; logits that are not finite.
    """
    if splits < 1:
        raise UsageError(f"splits is {splits}: choose at least 1.")
    check_feature_sets(logits, at_least=splits, what=f"An Inception Score of {splits} splits")
    count = len(logits)
    order = np.random.RandomState(seed).permutation(count) if shuffle else np.arange(count)
    scores = [
        _score(logits[order[i * count // splits : (i + 1) * count // splits]])
        for i in range(splits)
    ]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: np.ndarray) -> float:
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    # E KL = Σ_y p(y) log 1/p(y) - E H[p(y|x)]; the entropy of a class that never occurs is 0
    entropies = -np.sum(p * log_p, axis=1)
    return float(np.exp(scipy.special.entr(p.mean(axis=0)).sum() - entropies.mean()))
