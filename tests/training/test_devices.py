"""One device and several train alike, the state on each or split over them; they read each other's
checkpoints."""

import pathlib

import numpy as np
import pytest

pytestmark = pytest.mark.full

PROGRAM = pathlib.Path(__file__).parent / "on_devices.py"
SAVED_AT = 5


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_python):
    """Results on 1 device, on 8, and of each continuing what another wrote; "split" ones under
    fsdp."""
    out = tmp_path_factory.mktemp("devices")
    run_python(PROGRAM, "pmap", out / "one", devices=1)
    run_python(PROGRAM, "pmap", out / "eight", devices=8)
    run_python(PROGRAM, "pmap", out / "continued", out / "one", devices=8)
    run_python(PROGRAM, "fsdp", out / "split", devices=4)
    run_python(PROGRAM, "fsdp", out / "split_continued", out / "eight", devices=8)
    run_python(PROGRAM, "pmap", out / "back", out / "split", devices=1)
    run_python(PROGRAM, "fsdp", out / "split_in_one", out / "split", devices=1)
    return {path.name: dict(np.load(path / "results.npz")) for path in out.iterdir()}


def _numpy_gradient(x, w):
    return 2 * (x @ w - 1) @ x / len(x)


def _clip(gradient):
    return gradient / max(1.0, np.linalg.norm(gradient))


def test_the_averaged_gradient_is_that_of_the_global_batch(runs):
    for run in (runs["one"], runs["eight"], runs["split"]):
        expected = _numpy_gradient(np.float64(run["x"]), np.float64(run["w"]))
        for name in ("plain", "accumulated"):
            # 1e-5: float32 sums of 16 terms.
            np.testing.assert_allclose(run[f"gradient_{name}"], expected, rtol=1e-5)
            np.testing.assert_allclose(run[f"norm_{name}"], np.linalg.norm(expected), rtol=1e-5)


def test_clip_scopes_are_two_algorithms_each_as_in_numpy(runs):
    run = runs["eight"]
    x, w = np.float64(run["x"]), np.float64(run["w"])
    replicas = [_numpy_gradient(part, w) for part in np.split(x, 8)]
    average, replica = (
        _clip(np.mean(replicas, axis=0)),
        np.mean([_clip(g) for g in replicas], axis=0),
    )
    assert min(np.linalg.norm(g) for g in replicas) < 1 < max(np.linalg.norm(g) for g in replicas)
    np.testing.assert_allclose(run["gradient_average"], average, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run["gradient_replica"], replica, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(average - replica) > 0.1
    np.testing.assert_allclose(
        run["norm_average"], np.linalg.norm(np.mean(replicas, axis=0)), rtol=1e-5
    )
    np.testing.assert_allclose(
        run["norm_replica"], np.mean([np.linalg.norm(g) for g in replicas]), rtol=1e-5
    )
    one = runs["one"]
    np.testing.assert_allclose(one["gradient_replica"], one["gradient_average"], rtol=1e-6)


@pytest.mark.parametrize("other", ["eight", "split"])
def test_both_draw_the_same_and_follow_the_same_curve(runs, other):
    one, eight = runs["one"], runs[other]
    np.testing.assert_array_equal(one["t"], eight["t"])
    assert np.any(one["t"] != np.sort(one["t"], axis=1))
    assert np.all(one["counts"] >= 10), "importance sampling has begun"
    # Ten updates of a network whose convolutions sum in another order.
    for name in ("loss", "losses", "grad_norm", "loss_q", "history"):
        np.testing.assert_allclose(eight[name], one[name], rtol=2e-4, atol=1e-5, err_msg=name)
    for name in ("params", "ema_params"):
        np.testing.assert_allclose(eight[name], one[name], atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(one["counts"], eight["counts"])
    assert abs(one["loss"][-1] - one["loss"][0]) > 0.05, "the network has learned something"


def test_all_devices_hold_the_same_state(runs):
    assert int(runs["eight"]["copies"]) == 8
    assert int(runs["eight"]["unequal_copies"]) == 0


def test_a_split_state_takes_less_of_a_device_the_more_there_are_and_pmap_the_same(runs):
    assert runs["one"]["bytes"] == runs["eight"]["bytes"] == runs["one"]["all_bytes"]
    for run in runs.values():
        assert run["bytes"] == run["pieces"], "what is reported is what the first device holds"
    # Norms and biases, 6 % of this tiny network, are on every device, and so is the objective's
    # memory.
    assert runs["split_in_one"]["bytes"] == runs["one"]["bytes"]
    assert runs["split"]["bytes"] < 0.35 * runs["one"]["bytes"]
    assert runs["split_continued"]["bytes"] < 0.2 * runs["one"]["bytes"]


def test_the_step_compiles_once(runs):
    assert [int(run["compilations_of_last_step"]) for run in runs.values()] == [0] * len(runs)


@pytest.mark.parametrize("name", ["continued", "split_continued", "back", "split_in_one"])
def test_any_devices_continue_what_others_began(runs, name):
    one, continued = runs["one"], runs[name]
    np.testing.assert_array_equal(continued["t"], one["t"][SAVED_AT:])
    np.testing.assert_allclose(continued["loss"], one["loss"][SAVED_AT:], rtol=2e-4)
    np.testing.assert_allclose(continued["params"], one["params"], atol=1e-5)


def test_a_batch_that_the_devices_cannot_share_is_refused(runs):
    assert str(runs["one"]["refusal"]) == ""
    assert "12, which 8 devices cannot share evenly: use 8" in str(runs["eight"]["refusal"])
