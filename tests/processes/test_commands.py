"""Several processes sample and evaluate together, and come to what one comes to."""

import functools
import json
import pathlib
import re

import numpy as np
import pytest

from ddpm_jax.checkpoints.reader import find_step
from ddpm_jax.monitoring.records import read

LAYOUTS = {"one": {}, "two": {"processes": 2, "devices": 2}}
DEVICES = {"devices": {"devices": 4}}
TEN_STEPS = pathlib.Path(__file__).parents[1] / "fixtures" / "runs" / "ten_steps"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train):
    workdir = tmp_path_factory.mktemp("trained")
    train(workdir, 8).succeed()
    return workdir


@pytest.mark.slow
def test_two_processes_share_the_images_that_are_sampled(tmp_path, trained, command):
    for name, layout in LAYOUTS.items():
        arguments = ["--ckpt", trained, "--num_samples", 1100, "--batch_size", 100, "--steps", 2]
        outputs = command("sample.py", *arguments, "--out", tmp_path / name, **layout).succeed()
        assert "1100 images" in outputs[0]
        assert not any("images" in output for output in outputs[1:])
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in LAYOUTS]
    assert (
        names[0]
        == names[1]
        == {"grid.png", "manifest.json", "samples-00000-of-00002.npz", "samples-00001-of-00002.npz"}
    )
    for path in sorted((tmp_path / "one").glob("*.npz")):
        ours, expected = np.load(tmp_path / "two" / path.name), np.load(path)
        np.testing.assert_array_equal(ours["index"], expected["index"])
        # A batch of another size sums in another order: a grey level at most, and seldom.
        off = np.abs(np.int32(ours["images"]) - expected["images"])
        assert off.max() <= 1
        assert np.mean(off) < 1e-2


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(tmp_path, trained, command):
    records = {}
    for name, layout in LAYOUTS.items():
        arguments = [
            "--ckpt",
            trained,
            "--metric",
            "bpd,bpd_ode,frechet_pixels",
            "--num_images",
            21,
            "--draws",
            2,
        ]
        arguments += [
            "--rtol",
            "1e-3",
            "--atol",
            "1e-3",
            "--num_samples",
            30,
            "--batch_size",
            8,
            "--steps",
            2,
        ]
        outputs = command("evaluate.py", *arguments, "--out", tmp_path / name, **layout).succeed()
        assert "bpd_ode of step 8" in outputs[0]
        assert not any("bits/dim" in output for output in outputs[1:])
        records[name] = {
            re.match(r"(bpd_ode|[a-z]+)", path.name)[0]: json.loads(path.read_text())
            for path in (tmp_path / name).glob("*.json")
        }
        assert not list((tmp_path / name).glob("*_images*"))  # the parts have been merged
    one, two = records["one"], records["two"]
    assert set(one) == set(two) == {"bpd", "bpd_ode", "frechet"}
    for part in ("mean", "standard_error"):
        np.testing.assert_allclose(
            two["bpd"]["bits_per_dim"][part], one["bpd"]["bits_per_dim"][part], rtol=1e-5
        )
        # Roundings, of which the solver takes account in the lengths of its steps.
        np.testing.assert_allclose(
            two["bpd_ode"]["bits_per_dim"][part], one["bpd_ode"]["bits_per_dim"][part], rtol=1e-4
        )
    np.testing.assert_allclose(
        two["bpd"]["per_timestep"]["bits"], one["bpd"]["per_timestep"]["bits"], rtol=1e-4
    )
    # Images that differ by a grey level here and there.
    np.testing.assert_allclose(
        two["frechet"]["frechet_samples"], one["frechet"]["frechet_samples"], rtol=1e-3
    )


@pytest.mark.slow
def test_an_evaluation_that_loses_a_process_goes_on_when_it_is_given_again(
    tmp_path, trained, command
):
    together, alone = tmp_path / "together", tmp_path / "alone"
    arguments = ["--ckpt", trained, "--metric", "bpd", "--num_images", 100, "--batch_size", 4]
    parts = functools.partial(together.glob, "*_images*.npz")
    lost = command("evaluate.py", *arguments, "--out", together, processes=2)
    lost.until(lambda: len(list(parts())) == 2)
    lost.processes[1].kill()
    (code, _), (output, _) = lost.finish()
    assert code == 1
    assert output.splitlines()[-1].startswith("error: Another process of this run was lost"), output
    assert len(list(parts())) == 2

    command("evaluate.py", *arguments, "--out", together, processes=2).succeed()
    assert not list(parts())
    command("evaluate.py", *arguments, "--out", alone).succeed()
    ours, expected = (
        json.loads(next(out.glob("bpd*.json")).read_text())["bits_per_dim"]
        for out in (together, alone)
    )
    np.testing.assert_allclose(ours["mean"], expected["mean"], rtol=1e-5)
    np.testing.assert_allclose(ours["standard_error"], expected["standard_error"], rtol=1e-4)


def _results(out):
    """The numbers of all records in a directory, by metric and name."""
    found = {}
    for path in out.glob("*.json"):
        record = json.loads(path.read_text())
        numbers = {name: each["value"] for name, each in record.get("results", {}).items()}
        if record["metric"] == "memorization":
            numbers = {
                "bits": record["bits_gap"]["value"],
                "distances": record["median_distances"],
                "ratios": [pair["ratio"] for pair in record["pairs"]],
            }
        else:
            numbers |= {"error": record["error"]}
        found[record["metric"]] = numbers
    return found


@pytest.mark.slow
def test_metrics_of_features_do_not_depend_on_devices_and_processes(tmp_path, command):
    arguments = ["--ckpt", TEN_STEPS, "--metric", "fid,kid,is,prdc,memorization"]
    arguments += ["--features", "digits", "--feature_cache", "none", "--num_samples", 30]
    arguments += ["--batch_size", 8, "--sampler", "ddim", "--steps", 2]
    found = {}
    for name, layout in (LAYOUTS | DEVICES).items():
        command("evaluate.py", *arguments, "--out", tmp_path / name, **layout).succeed()
        found[name] = _results(tmp_path / name)
    one = found.pop("one")
    assert set(one) == {"fid", "kid", "is", "prdc", "memorization"}
    for other in found.values():
        for metric, numbers in one.items():
            assert set(other[metric]) == set(numbers)
            for name, value in numbers.items():
                # A batch of another size sums in another order, and may move a pixel by a level.
                np.testing.assert_allclose(
                    other[metric][name], value, rtol=2e-3, atol=1e-5, err_msg=f"{metric} {name}"
                )


@pytest.mark.slow
def test_evaluations_of_a_run_do_not_depend_on_devices_and_processes(tmp_path, train):
    fields = {"metric": "fid", "features": "digits", "every_steps": 3, "num_samples": 18}
    fields |= {"sample_steps": 2, "batch_size": 8, "num_reference": 200}
    flags = [f"--config.eval.{name}={value}" for name, value in fields.items()]
    found = {}
    for name, layout in (LAYOUTS | DEVICES).items():
        outputs = train(tmp_path / name, 6, *flags, **layout).succeed()
        assert not any("fid" in output for output in outputs[1:])
        records = [r for r in read(tmp_path / name) if "eval_fid" in r]
        found[name] = [(record["step"], record["eval_fid"]) for record in records]
        best = min(found[name], key=lambda each: each[1])[0]
        assert find_step(tmp_path / name / "best") == best
    assert [step for step, _ in found["one"]] == [3, 6]
    for each in found.values():
        np.testing.assert_allclose(each, found["one"], rtol=1e-2)
