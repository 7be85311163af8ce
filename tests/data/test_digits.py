"""The bundled digits: the right pixels, a fixed split, prepared once, also by two processes."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ddpm_jax.data import digits, sources
from ddpm_jax.errors import FailureError, UsageError

HIDE_TENSORFLOW = """
import sys

class WithoutTensorFlow:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *args):
        return None if name.split(".")[0] == "tensorflow" else self.finder.find_spec(name, *args)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [WithoutTensorFlow(finder) for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def _load(data_dir, split="train", **options):
    return sources.load(
        name="digits",
        split=split,
        data_dir=data_dir,
        **({"image_size": 8, "channels": 1} | options),
    )


def _all(source):
    examples = [source[i] for i in range(len(source))]
    return np.stack([example["image"] for example in examples]), np.array(
        [example["label"] for example in examples]
    )


def test_the_splits_are_scikit_learns_scans_in_the_frozen_order(data_dir):
    scans = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    for split, rows in [("train", order[:1497]), ("test", order[1497:])]:
        images, labels = _all(_load(data_dir, split))
        exact = scans.images[rows][..., None] * 255 / 16
        assert images.dtype == np.uint8
        assert np.abs(images - exact).max() <= 0.5  # rounded, not truncated
        np.testing.assert_array_equal(labels, scans.target[rows])


def test_the_whole_range_is_used_and_every_class_is_in_both_splits(data_dir):
    for split in ("train", "test"):
        images, labels = _all(_load(data_dir, split))
        assert (images.min(), images.max()) == (0, 255)
        assert set(labels) == set(range(10))


def test_the_attributes_describe_them(data_dir):
    source = _load(data_dir, cache="never")
    assert source.image_shape == (8, 8, 1)
    assert source.num_classes == 10
    assert len(source) == 1497
    assert source.fingerprint == "digits/1.0.0 train 8x8x1 n=1497"
    assert _load(data_dir, cache="always").fingerprint == source.fingerprint
    assert source[3]["label"].dtype == np.int32


def test_they_can_be_smaller_or_rgb_but_not_larger(data_dir):
    assert _load(data_dir, channels=3).image_shape == (8, 8, 3)
    images, _ = _all(_load(data_dir, "test", image_size=4))
    whole, _ = _all(_load(data_dir, "test"))
    # Pillow rounds twice
    assert np.abs(images - whole.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))).max() <= 1
    with pytest.raises(UsageError, match="is 8x8 pixels, smaller than image_size=16"):
        _load(data_dir, image_size=16)


def test_preparing_twice_writes_once(data_dir):
    _load(data_dir)
    before = {
        entry.name: entry.stat().st_mtime_ns for entry in os.scandir(f"{data_dir}/digits/1.0.0")
    }
    assert digits.prepare(data_dir) == "digits:1.0.0"
    assert {
        entry.name: entry.stat().st_mtime_ns for entry in os.scandir(f"{data_dir}/digits/1.0.0")
    } == before


def test_preparing_is_silent(tmp_path, capfd):
    _load(str(tmp_path))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_process_that_comes_second_succeeds_too(tmp_path, monkeypatch):
    """A rare interleaving: another process finishes while this one is writing."""
    generate = digits.Digits._generate_examples
    calls = []

    def interrupted(self, *args):
        if not calls:
            calls.append(None)
            digits.prepare(str(tmp_path))
        yield from generate(self, *args)

    monkeypatch.setattr(digits.Digits, "_generate_examples", interrupted)
    assert len(_load(str(tmp_path))) == 1497
    assert [entry.name for entry in os.scandir(tmp_path / "digits")] == ["1.0.0"]


@pytest.mark.full
def test_two_processes_prepare_at_once(tmp_path):
    program = (
        "from ddpm_jax.data import sources\nprint(len(sources.load(name='digits', split='test', "
        f"data_dir={str(tmp_path)!r}, image_size=8, channels=1)))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == [
        b"300",
        b"300",
    ]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        FailureError, match=r"digits cannot be written below .*file .*set data_dir to a folder"
    ):
        _load(str(tmp_path / "file"))


@pytest.mark.full
def test_nothing_imports_tensorflow(tmp_path):
    """Everything works with TensorFlow hidden, and nothing tries to import it."""
    program = """
    import os
    import grain
    from PIL import Image
    from ddpm_jax.data import pipeline, sources, transforms
    from ddpm_jax.errors import UsageError

    options = dict(image_size=8, channels=1, data_dir={data_dir!r})
    source = sources.load(name="digits", split="train", **options)
    next(pipeline.train_iterator(source, batch_size=4, seed=0))
    os.mkdir({data_dir!r} + "/pictures")
    Image.new("L", (8, 8)).save({data_dir!r} + "/pictures/a.png")
    pictures = options | dict(data_dir={data_dir!r} + "/pictures")
    sources.load(name="folder", split="train", **pictures)
    for name in ("cifar10", "no_such_dataset"):
        try:
            sources.load(name=name, split="train", **options)
        except UsageError:
            pass
    assert "tensorflow" not in sys.modules
    assert "flax" not in sys.modules
    """
    code = HIDE_TENSORFLOW + textwrap.dedent(program.format(data_dir=str(tmp_path)))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
