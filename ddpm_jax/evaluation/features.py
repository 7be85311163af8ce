"""`FeatureNetwork`: what turns images into the numbers in which sets of them are compared.

The metrics (`frechet`, `kernel_distance`, `inception_score`, `neighbours`) take arrays of features
and know nothing of images; which networks there are is known to `measuring`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Extracted(NamedTuple):
    """What a network says of B images."""

    features: np.ndarray  # float32 [B, D]
    logits: np.ndarray | None = None  # float32 [B, K] of K classes, where the network classifies


class FeatureNetwork(NamedTuple):
    """A function of images, and all that decides its numbers."""

    name: str  # "inception", "digits", "pixels", "module:function", ...
    dims: int  # D
    extract: Callable[[np.ndarray], Extracted]  # of uint8 images [B, H, W, C], all of one size
    # for a result's record: digest of the weights, input size, resizer, rounding
    record: dict[str, Any]
    num_classes: int = 0  # K; 0 for a network without logits
    is_function: bool = False  # of the user's, which may change while its name stays
