"""`ddpm-jax plot`: what it draws of the records, what it prints, and what it
refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.experiments import config as configs
from ddpm_jax.training_runs import run_curves


@pytest.fixture
def make_run(tmp_path):
    """make_run("a", losses, ch=64, seconds=False) -> the directory of a run with a record every 10
    steps."""

    def make(name, losses, *, seconds=True, **model):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        lines = [
            {"step": 10 * i, "loss": loss, "grad_norm": 2 * loss}
            | ({"seconds": 3.0 * i} if seconds else {})
            for i, loss in enumerate(losses, start=1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        config = configs.to_dict(configs.default_config())
        config["model"] |= model
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def drawn(monkeypatch):
    """What the picture is made of, in the order of the calls: (panels, xlabel, smoothing)."""
    calls, real = [], run_curves.compare_runs

    def compare_runs(path, panels, *, xlabel, smoothing):
        calls.append((panels, xlabel, smoothing))
        real(path, panels, xlabel=xlabel, smoothing=smoothing)

    monkeypatch.setattr(run_curves, "compare_runs", compare_runs)
    return calls


def test_two_runs_become_one_picture_and_a_table(invoke, make_run, tmp_path, drawn):
    a, b = make_run("a", [4.0, 2.0, 1.0]), make_run("b", [8.0, 4.0, 2.0, 1.0], ch=64)
    result = invoke(
        "plot", a, b, "--metrics", "loss,grad_norm", "--out", tmp_path / "new" / "both.png"
    )
    assert result.code == 0, result.err
    with Image.open(tmp_path / "new" / "both.png") as picture:
        assert picture.width > 2 * picture.height
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    ((panels, xlabel, smoothing),) = drawn
    assert list(panels) == ["loss", "grad_norm"]
    assert [curve.label for curve in panels["loss"]] == ["a (model.ch=128)", "b (model.ch=64)"]
    np.testing.assert_array_equal(panels["loss"][0].x, [10, 20, 30])
    np.testing.assert_array_equal(panels["loss"][0].y, [4, 2, 1])
    np.testing.assert_array_equal(panels["grad_norm"][1].y, [16, 8, 4, 2])
    assert xlabel == "step"
    assert smoothing == pytest.approx(np.exp(-80 / 4))
    table = [line.split() for line in result.out.splitlines()]
    assert table[0] == ["a", "b"]
    for row in (
        ["step", "30", "40"],
        ["seconds", "9", "12"],
        ["loss", "1", "1"],
        ["model.ch", "128", "64"],
    ):
        assert row in table
    assert result.out.splitlines()[-1] == f"wrote {tmp_path / 'new' / 'both.png'}"


@pytest.mark.parametrize(("over", "x"), [("seconds", [3, 6]), ("images", [10 * 128, 20 * 128])])
def test_the_axis_may_be_time_or_images(invoke, make_run, tmp_path, drawn, over, x):
    assert (
        invoke("plot", make_run("a", [2.0, 1.0]), "--x", over, "--out", tmp_path / "a.png").code
        == 0
    )
    np.testing.assert_array_equal(drawn[0][0]["loss"][0].x, x)


def test_flags_may_come_before_the_runs_and_smoothing_be_chosen(invoke, make_run, tmp_path, drawn):
    run = make_run("a", [2.0, 1.0])
    assert invoke("plot", "--smooth", "0.5", "--out", tmp_path / "a.png", run).code == 0
    assert drawn[0][2] == 0.5


def test_runs_of_one_name_are_told_apart_by_their_paths(invoke, make_run, tmp_path, drawn):
    runs = [make_run("x/run", [1.0]), make_run("y/run", [1.0])]
    assert invoke("plot", *runs, "--out", tmp_path / "a.png").code == 0
    assert [curve.label for curve in drawn[0][0]["loss"]] == list(map(str, runs))


def test_a_run_of_an_older_version_has_the_defaults_of_the_fields_it_lacks(
    invoke, make_run, tmp_path, drawn
):
    old, new = make_run("old", [1.0], seconds=False), make_run("new", [1.0])
    config = json.loads((old / "config.json").read_text())
    del config["condition"], config["train"]["raw_grid"]
    (old / "config.json").write_text(json.dumps(config))
    assert invoke("plot", old, new, "--out", tmp_path / "a.png").code == 0
    assert [curve.label for curve in drawn[0][0]["loss"]] == ["old", "new"]


def test_a_metric_that_only_one_run_has_is_drawn_for_that_one(invoke, make_run, tmp_path, drawn):
    a, b = make_run("a", [1.0, 2.0]), make_run("b", [1.0])
    with open(b / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "colour_shift": 3.0}\n{"step": 30, "colour_shift": null}\n')
    result = invoke("plot", a, b, "--metrics", "colour_shift", "--out", tmp_path / "a.png")
    assert [curve.label for curve in drawn[0][0]["colour_shift"]] == ["b"]
    assert ["colour_shift", "-", "3"] in [line.split() for line in result.out.splitlines()]


def test_what_cannot_be_drawn_is_refused_in_a_sentence(refused, make_run, tmp_path):
    run, old = make_run("digits", [2.0, 1.0]), make_run("old", [1.0], seconds=False)
    out = ["--out", tmp_path / "a.png"]
    refused("plot", says=["No run is named"])
    refused(
        "plot",
        tmp_path / "digitz",
        *out,
        says=[f"no directory {tmp_path / 'digitz'}", f"mean '{run}'?"],
    )
    refused("plot", tmp_path, *out, says=["no records in", f"such as {run}"])
    (tmp_path / "empty").mkdir()
    refused("plot", tmp_path / "empty", *out, says=["no records in", "first train.log_every steps"])
    refused(
        "plot",
        run,
        "--metrics",
        "los",
        *out,
        says=["Unknown metric 'los'", "grad_norm, loss", "mean 'loss'?"],
    )
    refused(
        "plot", run, "--x", "hours", *out, says=["Unknown x axis 'hours'", "images, seconds, step"]
    )
    refused("plot", run, old, "--x", "seconds", *out, says=["old", "no seconds", "x step"])
    refused("plot", run, run, *out, says=["named twice"])
    refused("plot", run, "--out", tmp_path / "notes.txt", says=["ends in .png"])
    for weight in ("1", "-0.1", "much", "nan"):
        refused("plot", run, f"--smooth={weight}", *out, says=["smooth is ", weight, "below 1"])
    (old / "config.json").unlink()
    refused("plot", old, "--x", "images", *out, says=["no config.json", "x step"])
    refused("plot", run, "--platform", "cpu", *out, says=["no flag --platform"])
    assert not (tmp_path / "a.png").exists()


def test_a_metric_without_a_finite_value_is_refused(refused, make_run, tmp_path):
    run = make_run("a", [1.0])
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n')
    refused("plot", run, "--out", tmp_path / "a.png", says=["No run has a finite value of 'loss'"])


def test_a_damaged_config_is_a_failure_with_its_path(refused, make_run, tmp_path):
    run = make_run("a", [1.0])
    (run / "config.json").write_text("{")
    refused(
        "plot",
        run,
        "--out",
        tmp_path / "a.png",
        says=[str(run / "config.json"), "move it away"],
        code=1,
    )
