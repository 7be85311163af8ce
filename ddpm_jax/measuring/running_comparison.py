"""One metric of sets of samples that come again and again, as while a run trains."""

import functools
from typing import Any

import numpy as np

from ddpm_jax.data.sources import Source
from ddpm_jax.distributed import hosts
from ddpm_jax.measuring.evaluation_settings import Features
from ddpm_jax.measuring.feature_cache import open_cache
from ddpm_jax.measuring.feature_metrics import FEATURE_METRICS, measure_value
from ddpm_jax.measuring.feature_sets import FeatureSet, compute_features
from ddpm_jax.measuring.image_comparison import Reference, Samples, network_of, plan_for
from ddpm_jax.measuring.image_sets import of_arrays, of_source, spread


class RunningComparison:
    """A metric against images whose features are computed once, when they are first needed.

    The values are those of `evaluate` with the same settings.
    """

    def __init__(
        self,
        metric: str,
        source: Source,
        settings: Features,
        *,
        num_samples: int,
        num_reference: int,
    ):
        """Load the network and check that the metric can be computed; no image is read.

        Args:
          metric: a key of `feature_metrics.FEATURE_METRICS`.
          source: the images to compare with, of the samples' shape.
          settings: the network.
          num_samples: samples in each set.
          num_reference: images to compare with, spread over the source.

        Raises:
          UsageError: the metric cannot be computed of such sets; what `load_features` raises.
        """
        self._metric, self._settings, self._num_samples = metric, settings, num_samples
        self._images = of_source(source)
        self._rows = spread(len(source), num_reference)
        self._network = network_of(settings, self._images)
        samples = Samples(num_samples, self._images.image_shape, 0, lambda: self._images)
        self._plan = plan_for(
            (metric,), self._network, samples, Reference(self._images), num_reference
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Return what decides a value besides the samples' sampler: JSON-able."""
        network = {"name": self._network.name, "dims": self._network.dims, **self._network.record}
        counts = {"num_samples": self._num_samples, "num_reference": len(self._rows)}
        return {"metric": self._metric, **counts, "network": network}

    @property
    def is_better_low(self) -> bool:
        """Return whether a lower value is a better one."""
        return FEATURE_METRICS[self._metric].is_better_low

    def value(self, samples: np.ndarray) -> float:
        """Return the metric of samples, uint8 [N, H, W, C], the same number on every process.

        Raises:
          FailureError: an image that cannot be read; features that are not finite.
          Stopped: by a signal or a time limit.
        """
        batch_size = self._settings.feature_batch_size
        features = compute_features(
            of_arrays(samples),
            np.arange(len(samples)),
            self._network,
            self._plan.of_samples,
            batch_size=batch_size,
        )
        value = measure_value(self._metric, features, self._reference)
        # Processes of different machines may differ in the last digit, and must decide alike.
        return hosts.gather_json(value)[0]

    @functools.cached_property
    def _reference(self) -> FeatureSet | None:
        if self._plan.of_reference is None:
            return None
        return compute_features(
            self._images,
            self._rows,
            self._network,
            self._plan.of_reference,
            batch_size=self._settings.feature_batch_size,
            cache=open_cache(self._settings.feature_cache),
        )
