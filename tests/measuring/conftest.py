"""Features of no network, and a cache of their own for all tests here."""

import numpy as np
import pytest

from ddpm_jax.measuring import image_comparison


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The directory of cached features."""
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def looked_at(monkeypatch):
    """The images that networks are given from now on, a list of their numbers in each batch."""
    batches = []
    load = image_comparison.load_features

    def counting(*args, **kwargs):
        network = load(*args, **kwargs)

        def extract(images):
            batches.append(len(images))
            return network.extract(images)

        return network._replace(extract=extract)

    monkeypatch.setattr(image_comparison, "load_features", counting)
    return batches


@pytest.fixture
def pictures():
    """Two sets of grey pictures of different means, uint8 [60, 4, 4, 1] and [50, 4, 4, 1]."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(100, 30, (60, 4, 4, 1)), rng.normal(120, 40, (50, 4, 4, 1))
    return tuple(np.clip(x, 0, 255).astype(np.uint8) for x in (a, b))
