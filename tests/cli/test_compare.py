"""`ddpm-jax compare`: what it prints of two records, and what it refuses."""

import numpy as np

from ddpm_jax.measuring.image_comparison import compare_images
from ddpm_jax.monitoring.results import write_record


def test_the_setting_that_differs_is_printed_with_its_effect(invoke, refused, tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", rng.integers(0, 256, (20, 3, 3, 1), np.uint8))
    paths, values = [tmp_path / f"{count}.json" for count in (10, 20)], []
    for path, count in zip(paths, (10, 20), strict=True):
        sets = (tmp_path / "a.npz", tmp_path / "b.npz")
        settings = {"num_images": count, "features": "pixels"}
        record = compare_images(*sets, "kid", **settings)["kid"]
        write_record(path, record)
        values.append(record["value"])
    result = invoke("compare", *paths)
    assert result.code == 0
    effect = f"{values[1] - values[0]:+.4g}"
    assert ["num_samples", "10", "20", effect] in [s.split() for s in result.out.splitlines()]
    assert "not computed" in invoke("compare", *paths, "--norecompute").out
    refused("compare", paths[0], says=["One file is named"])
    refused("compare", paths[0], tmp_path / "c.json", says=["There is no"])
