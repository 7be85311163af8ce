"""`evaluate --metric fid,...`: numbers of a model's samples and of two given sets, one set of
samples for all metrics, kept for a command that is given again."""

import json

import numpy as np
import pytest
import scipy.spatial

import ddpm_jax
from ddpm_jax.data.in_memory import in_memory
from ddpm_jax.distributed import interrupt
from ddpm_jax.errors import UsageError
from ddpm_jax.generation import generating
from ddpm_jax.generation.shards import read_shards
from ddpm_jax.measuring import memorization_metric, sample_features
from ddpm_jax.measuring.image_comparison import compare_images
from ddpm_jax.measuring.image_sets import open_images

ARGV = ["--features", "digits", "--num_samples", 6, "--batch_size", 3, "--sampler", "ddim"]
ARGV += ["--steps", 2, "--feature_batch_size", 64]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))


def read(out, metric):
    (path,) = out.glob(f"{metric}_*.json")
    return json.loads(path.read_text())


@pytest.mark.full
def test_all_metrics_are_of_the_same_samples_which_a_stopped_command_keeps(
    invoke, refused, trained, data_dir, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    argv = ["--ckpt", trained, "--metric", "fid,kid,prdc", "--out", out, *ARGV]
    load = sample_features.network_for

    def stopping(*args, **kwargs):
        def stop(images):
            if len(images) == 6:  # the samples
                raise interrupt.Stopped(interrupt.Wish.SIGTERM)
            return network.extract(images)

        network = load(*args, **kwargs)
        return network._replace(extract=stop)

    with monkeypatch.context() as patched:
        patched.setattr(sample_features, "network_for", stopping)
        assert invoke("evaluate", *argv).code == 143
    assert not list(out.glob("*.json"))
    (shards,) = (out / "samples").iterdir()

    def fail(*args, **kwargs):
        raise AssertionError("images are made again")

    with monkeypatch.context() as patched:
        patched.setattr(generating, "generate_batches", fail)
        result = invoke("evaluate", *argv)
    assert result.code == 0
    assert "warning: 6 samples are few for 64 features" in result.err

    alone = compare_images(
        shards, "digits:train", "fid,kid,prdc", features="digits", data_dir=data_dir
    )
    for metric in ("fid", "kid", "prdc"):
        record = read(out, metric)
        for name, found in alone[metric]["results"].items():
            assert record["results"][name] == pytest.approx(found)
        assert (record["sampler"], record["steps"], record["weights"]) == ("ddim", 2, "ema")
        assert record["images"]["images_sha256"] == alone[metric]["images"]["images_sha256"]
        assert record["reference"]["images_sha256"] == alone[metric]["reference"]["images_sha256"]
        assert record["network"] == alone[metric]["network"]
    assert f"{read(out, 'fid')['value']:.6g}" in result.out

    # From Python, without files.
    settings = {"features": "digits", "num_samples": 6, "batch_size": 3, "sampler": "ddim"}
    settings |= {"steps": 2, "feature_batch_size": 64}
    found = ddpm_jax.load(trained).evaluate("fid,kid", **settings)
    for metric in ("fid", "kid"):
        assert found[metric]["value"] == pytest.approx(read(out, metric)["value"], rel=1e-3)
        assert found[metric]["checkpoint_step"] == 10
    found = ddpm_jax.load(trained).evaluate(
        "fid", out=tmp_path / "function", **settings | {"features": lambda x: x[:, :4, 0, 0]}
    )["fid"]
    assert found["network"]["name"].endswith("<lambda>")
    assert read(tmp_path / "function", "fid")["value"] == found["value"]
    assert found["data"] == sorted(set(found["data"])), "no line twice"
    with pytest.raises(UsageError, match="no setting feature"):
        ddpm_jax.load(trained).evaluate("fid", feature="digits")

    # Another reference is another file; other weights are refused before anything is computed.
    more = ["--reference", "digits:test", "--data_dir", data_dir]
    assert invoke("evaluate", *argv, *more).code == 0
    assert len(list(out.glob("fid_*.json"))) == 2
    refused("evaluate", *argv, *more, "--split", "test", says=["give one of them"])
    refused("evaluate", *argv, "--raw_weights", "--num_reference", 3, says=["prdc needs at least"])

    # The weights as trained make other samples: `compare` says what that does to the number.
    raw = tmp_path / "raw"
    assert invoke("evaluate", *argv, "--raw_weights", "--out", raw).code == 0
    (of_raw,) = raw.glob("kid_*.json")
    records = [out / of_raw.name.replace("raw", "ema"), of_raw]
    result = invoke("compare", *records)
    assert result.code == 0
    ema_value, raw_value = (json.loads(path.read_text())["value"] for path in records)
    difference = raw_value - ema_value
    (line,) = (line for line in result.out.splitlines() if line.split()[:1] == ["weights"])
    assert line.split()[1:4] == ["'ema'", "'raw'", f"{difference:+.4g}"]
    refused("compare", records[0], says=["One file is named"])


@pytest.mark.full
def test_memorization_is_of_the_samples_of_the_other_metrics_and_keeps_them(
    invoke, trained, data_dir, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    argv = ["--ckpt", trained, "--metric", "fid,memorization", "--out", out, *ARGV]
    made, generate = [], generating.generate_batches

    def counting(*args, **kwargs):
        for indices, images in generate(*args, **kwargs):
            made.extend(indices)
            yield indices, images

    def stop(*args):
        raise interrupt.Stopped(interrupt.Wish.SIGTERM)

    monkeypatch.setattr(generating, "generate_batches", counting)
    with monkeypatch.context() as patched:
        patched.setattr(memorization_metric, "_gap", stop)
        result = invoke("evaluate", *argv)
    assert result.code == 143
    (shards,) = (out / "samples").iterdir()
    assert f"the samples in {shards} are kept; the same command goes on with them" in result.err
    assert read(out, "fid")
    assert not list(out.glob("memorization_*"))

    monkeypatch.setattr(memorization_metric, "_gap", lambda *_: (None, "none"))
    assert invoke("evaluate", *argv).code == 0
    assert made == list(range(6))
    samples = read_shards(shards).reshape(6, -1).astype(float)
    pair = read(out, "memorization")["pairs"][0]
    train = in_memory(open_images("digits:train", data_dir=data_dir).source).images
    nearest = scipy.spatial.distance.cdist(samples, train.reshape(len(train), -1))
    assert pair["distance"] == pytest.approx(nearest[pair["sample"]].min())
    assert pair["train"] == nearest[pair["sample"]].argmin()


def test_what_cannot_be_computed_is_refused_before_an_image_is_made(refused, trained, tmp_path):
    argv = ["--ckpt", trained, "--out", tmp_path]
    says = {
        ("fid", "inception"): ["inception"],
        ("is", "pixels"): ["needs a network that classifies"],
        ("fid_by_class", "digits"): ["classes of both sets must be known"],
        ("fid_infinity", "digits"): ["take more than 320 samples"],
    }
    for (metric, features), words in says.items():
        refused("evaluate", *argv, "--metric", metric, "--features", features, says=words)
    refused("evaluate", *argv, "--image_size", 8, says=["--image_size is for --images"])


def test_two_sets_are_compared_without_a_model(invoke, refused, tmp_path):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (20, 3, 3, 1), np.uint8) for _ in range(2))
    np.savez(tmp_path / "a.npz", a)
    np.savez(tmp_path / "b.npz", b)
    argv = ["--images", tmp_path / "a.npz", "--reference", tmp_path / "b.npz"]
    argv += ["--features", "pixels", "--out", tmp_path / "out"]
    result = invoke("evaluate", *argv, "--metric", "fid,kid", "--num_images", 15)
    assert result.code == 0
    wanted = compare_images(a[:15], b, "fid,kid", features="pixels")
    for metric in ("fid", "kid"):
        assert read(tmp_path / "out", metric)["value"] == pytest.approx(wanted[metric]["value"])
    assert invoke("evaluate", *argv, "--metric", "fid", "--num_images", 16).code == 0
    assert len(list((tmp_path / "out").glob("fid_*.json"))) == 2
    without = "is for a model, and --images are compared without one"
    for flag, value, instead in (
        ("--num_samples", 5, "give --num_images"),
        ("--batch_size", 5, "give --feature_batch_size"),
        ("--split", "test", "as in --images digits:test"),
        ("--seed", 0, "leave it out"),
        ("--sampler", "ddim", "leave it out"),
        ("--distances", "pixels", "leave it out"),
        ("--dtype", "float32", "leave it out"),
    ):
        says = [f"{flag} {without}: ", instead]
        refused("evaluate", *argv, "--metric", "fid", flag, value, says=says)
    refused("evaluate", *argv, "--metric", "fid", "--raw_weights", says=[without])
    refused("evaluate", *argv, says=["--metric is missing"])
    refused("evaluate", *argv, "--metric", "bpd", says=["--metric bpd is of a model: name one by"])
    refused("evaluate", *argv[2:], "--metric", "fid", says=["--reference is", "by --images"])
    refused("evaluate", *argv, "--metric", "fid", "--ckpt", "x", says=["leave one of them out"])
