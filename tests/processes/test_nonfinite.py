"""Steps that are not finite because of the images of one process: all pass over them, or all tell
the cause."""

import pathlib

import numpy as np
import pytest

from ddpm_jax.monitoring.records import read

PROGRAM = pathlib.Path(__file__).with_name("nonfinite.py")
WHY = "2 times in a row: the first number that is not finite is in the output of b (its input is finite"


def _weights(workdir, process):
    with np.load(workdir / f"weights_{process}.npz") as arrays:
        return [arrays[name] for name in arrays]


def _errors(output):
    return [line for line in output.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, command):
    """The weights that one device makes of the same batches."""
    workdir = tmp_path_factory.mktemp("alone")
    (code,), (output,) = command(PROGRAM, "pmap", workdir, 1).finish()
    assert code == 1, output
    assert "for 1 of 8 images" in _errors(output)[0]
    return _weights(workdir, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "steps_per_call"), [("pmap", 2), ("fsdp", 1)])
def test_all_processes_pass_over_the_same_steps_and_name_the_same_cause(
    tmp_path, command, alone, parallel, steps_per_call
):
    codes, outputs = command(
        PROGRAM, parallel, tmp_path, steps_per_call, processes=2, devices=2
    ).finish()
    assert codes == [1, 1], outputs
    records = read(tmp_path / "passes")
    assert [record["skipped"] for record in records] == [0, 0, 1, 0, 0, 1, 1, 0], outputs
    for ours, theirs, expected in zip(
        _weights(tmp_path, 0), _weights(tmp_path, 1), alone, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)  # sums in another order
    for output in outputs:
        (error,) = _errors(output)
        assert error.startswith("error: loss became inf at step 7, ")
        assert WHY in error
        assert "The checkpoint of step 4 is kept" in error
        assert "Traceback" not in output
