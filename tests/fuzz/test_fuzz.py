"""Whatever is typed, configured or lies on disk: one sentence and the right exit code, or the right
result.

Case n is always the same: `pytest --slow -n0 tests/fuzz -k '[17]'` runs the one of number 17 again,
and `python -m tests.fuzz.driver WORLD 300:800` looks further.
"""

import contextlib
import json

import pytest

from . import cases, driver, worker
from . import world as worlds

CASES = 300
# four of flags, of configs and of files; the others are slow
ALWAYS = (0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 20)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    with contextlib.closing(driver.Worker(tmp_path_factory.mktemp("fuzz") / "world")) as found:
        yield found


@pytest.mark.full
@pytest.mark.parametrize(
    "number", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in range(CASES)]
)
def test_one_sentence_or_the_right_result(watched, number):
    result = watched.run(number)
    assert not result["wrong"], json.dumps(result, indent=2)


@pytest.mark.parametrize(
    ("code", "out", "err", "wrong"),
    [
        (0, "2 images\n", "step 1\nwarning: old.\n", None),
        (2, "", "step 1\nerror: There is no x.\n", None),
        (1, "", "", "no single sentence"),
        (1, "", "error: a\nerror: b\n", "no single sentence"),
        (2, "", "error: a\nmore\n", "no single sentence"),
        (0, "", "error: a\n", "exit code 0"),
        (3, "", "error: a\n", "exit code 3"),
        (None, "", "error: a\n", "exit code None"),
        (0, "", "Traceback (most recent call last):\n", "traceback"),
        (0, "\x1b[2J\n", "", "prints '\\x1b'"),
        (0, "name\u202e\n", "", "prints '\\u202e'"),
        (1, "", f"error: {'x' * 10_000}\n", "without end"),
    ],
)
def test_what_is_wrong_with_an_outcome_is_told(code, out, err, wrong):
    found = worker.faults(code, out, err)
    assert (found == []) if wrong is None else any(wrong in fault for fault in found)


def test_a_case_is_a_function_of_its_number(tmp_path):
    world = tmp_path / "world"
    step = ("state/_METADATA", "state/d/0", "config/metadata", "data/metadata")
    files = [f"{run}/checkpoints/4/{name}" for run in ("run", "stage") for name in step]
    files += [
        "run/config.json",
        "run/metrics.jsonl",
        "generated/manifest.json",
        "generated/a.npz",
        "pictures/a/0.png",
    ]
    files += ["photo.png", "mask.png", "latents.npz", "weights.npz", "weights.safetensors"]
    for name in files:
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).write_text('{"a": [1, 2]}')
    made = []
    for attempt in ("one", "two"):
        for number in range(60):
            here = tmp_path / attempt / str(number)
            here.mkdir(parents=True)
            case = cases.make(number, world, here)
            made.append(
                (case.command, [text.replace(str(here), "") for text in case.argv], case.said)
            )
    assert made[:60] == made[60:]
    assert len({str(case) for case in made}) > 55
    assert {case[0] for case in made} == set(worlds.COMMANDS)


@pytest.mark.slow
def test_a_case_that_hangs_or_blows_up_ends_with_its_process(watched, monkeypatch):
    assert watched.run(5)["wrong"] == []
    monkeypatch.setattr(driver, "HANGS", 0.01)
    assert watched.run(5)["wrong"][0].startswith("no end after")
    monkeypatch.undo()
    monkeypatch.setattr(driver, "GROWS", 0)
    assert watched.run(5)["wrong"] == ["more than 0 GiB of memory"]
