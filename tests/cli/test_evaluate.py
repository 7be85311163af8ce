"""`python evaluate.py`: numbers beside the checkpoint."""

import json

import numpy as np
import pytest


def test_the_pixel_frechet_distance_is_printed_and_kept(invoke, copied, tmp_path):
    from ddpm_jax.evaluation.frechet import pixel_frechet_distance

    argv = ["--ckpt", copied, "--num_samples", 8, "--batch_size", 8]
    result = invoke("evaluate", *argv)
    assert result.code == 0
    path = copied / "evaluation" / "frechet_pixels_step10_ema.json"
    assert str(path) in result.out
    record = json.loads(path.read_text())
    assert (record["num_samples"], record["num_held_out"], record["num_train"]) == (8, 8, 1497)
    assert (record["checkpoint_step"], record["weights"], record["steps"], record["seed"]) == (10, "ema", 20, 0)
    assert record["ratio"] == pytest.approx(record["frechet_samples"] / record["frechet_held_out"])
    assert record["ratio"] > 1  # ten steps make no digits
    assert f"{record['frechet_samples']:.4g}" in result.out

    # The samples are those of sample.py, and the digits those of scikit-learn: the number follows from the two.
    assert invoke("sample", "--ckpt", copied, "--num_samples", 8, "--out", tmp_path / "eight").code == 0
    samples = np.load(next((tmp_path / "eight").glob("samples-*.npz")))["images"]
    assert record["frechet_samples"] == pytest.approx(pixel_frechet_distance(samples, train_digits()), rel=1e-2)


def train_digits():
    from sklearn.datasets import load_digits

    images = np.rint(load_digits().images[..., None] * (255 / 16)).astype(np.uint8)
    return images[np.random.RandomState(0).permutation(len(images))[:1497]]
