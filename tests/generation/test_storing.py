"""A set of images on disk: whole shards or none, the same after any number of kills."""

import errno
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.generation.shards import MANIFEST, read_shards
from ddpm_jax.generation.storing import write_shards

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = (4, 4, 1)
PROGRAM = """
import importlib.util, sys
from ddpm_jax.generation import storing
spec = importlib.util.spec_from_file_location("test_generating", {file!r})
this = importlib.util.module_from_spec(spec)
spec.loader.exec_module(this)
"""


def program(body):
    """A Python program that has `test_generating` as `this`, in a process of its own."""
    file = str(pathlib.Path(__file__).with_name("test_generating.py"))
    return [sys.executable, "-c", PROGRAM.format(file=file) + body]


def run_environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def fake_batches(batch_size=4, log=None):
    """Make images that encode their index, without a model."""

    def make_batches(indices):
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            if log is not None:
                log.extend(batch.tolist())
            yield (
                batch,
                np.broadcast_to(
                    (7 * batch % 251).astype(np.uint8)[:, None, None, None], (len(batch), *SHAPE)
                ),
            )

    return make_batches


SET = {
    "num_images": 23,
    "shard_size": 10,
    "manifest": {"checkpoint": "runs/digits", "step": 2000, "seed": 0},
}


def contents(directory):
    return {path.name: path.read_bytes() for path in pathlib.Path(directory).iterdir()}


@pytest.mark.parametrize(
    ("num_images", "shard_size", "batch_size"), [(23, 10, 4), (20, 10, 5), (3, 10, 4), (7, 1, 3)]
)
def test_shards_hold_every_image_once_in_order(tmp_path, num_images, shard_size, batch_size):
    done = []
    sizes = {"num_images": num_images, "shard_size": shard_size}
    write_shards(
        tmp_path / "out",
        fake_batches(batch_size),
        **sizes,
        manifest={"seed": 1},
        on_images=done.append,
    )
    count = -(-num_images // shard_size)
    names = {f"samples-{i:05d}-of-{count:05d}.npz" for i in range(count)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json", *names}
    images = read_shards(tmp_path / "out")
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 0, 0, 0], 7 * np.arange(num_images) % 251)
    index = np.concatenate([np.load(tmp_path / "out" / name)["index"] for name in sorted(names)])
    np.testing.assert_array_equal(index, np.arange(num_images))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == {"seed": 1, **sizes}
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (0, num_images)


def test_a_second_start_makes_only_the_shards_that_are_missing(tmp_path):
    write_shards(tmp_path, fake_batches(), **SET)
    complete = contents(tmp_path)
    (tmp_path / "samples-00001-of-00003.npz").unlink()
    (tmp_path / ".samples-00001-of-00003.npz.123.tmp").write_bytes(b"half")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("samples-*")}
    log, done = [], []
    write_shards(tmp_path, fake_batches(log=log), **SET, on_images=done.append)
    assert log == list(range(10, 20))
    assert done == [13, 17, 21, 23]
    assert contents(tmp_path) == complete
    assert all((tmp_path / name).stat().st_mtime_ns == mtime for name, mtime in before.items())
    log.clear()
    write_shards(tmp_path, fake_batches(log=log), **SET)
    assert log == []


def test_a_shard_of_other_images_is_not_taken_for_one_that_is_done(tmp_path):
    write_shards(tmp_path, fake_batches(), **SET)
    shutil.copy(tmp_path / "samples-00000-of-00003.npz", tmp_path / "samples-00001-of-00003.npz")
    before = contents(tmp_path)
    with pytest.raises(
        FailureError, match=r"samples-00001-of-00003\.npz holds other images than its name says"
    ):
        write_shards(tmp_path, fake_batches(), **SET)
    assert contents(tmp_path) == before
    with pytest.raises(FailureError, match=r"samples-00001-of-00003\.npz holds other images"):
        read_shards(tmp_path)
    # the first shard alone
    np.testing.assert_array_equal(read_shards(tmp_path, 7)[:, 0, 0, 0], 7 * np.arange(7) % 251)


@pytest.mark.slow
def test_a_set_finished_after_kill_9_is_the_set_made_at_once(tmp_path):
    """The real model, killed without warning again and again while it samples and writes."""
    body = """
generate = this.make_generate(*this.chain(), this.SHAPE)
def batches(indices):
    parts = this.generate_batches(generate, this.KERNEL, seed=0, indices=indices, batch_size=3)
    return ((index, made.images) for index, made in parts)
storing.write_shards({!r}, batches, num_images=1003, shard_size=5, manifest={{"seed": 0}})
"""
    subprocess.run(program(body.format(str(tmp_path / "whole"))), env=run_environment(), check=True)
    directory = tmp_path / "killed"
    for kill_at in (1, 20, 40):
        process = subprocess.Popen(program(body.format(str(directory))), env=run_environment())
        while process.poll() is None and len(list(directory.glob("samples-*"))) < kill_at:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert kill_at <= len(list(directory.glob("samples-*"))) < 201  # or the kill came too late
    subprocess.run(program(body.format(str(directory))), env=run_environment(), check=True)
    assert contents(directory) == contents(tmp_path / "whole")
    assert len(read_shards(directory)) == 1003


def test_a_set_made_otherwise_is_refused_and_left_alone(tmp_path):
    write_shards(tmp_path, fake_batches(), **SET)
    before = contents(tmp_path)
    other = {**SET, "manifest": {"checkpoint": "runs/digits", "step": 1000, "seed": 0, "steps": 50}}
    with pytest.raises(
        UsageError, match=r"step is 2000 there, 1000 here, steps is absent there, 50 here"
    ) as caught:
        write_shards(tmp_path, fake_batches(), **other)
    assert "seed" not in str(caught.value)
    with pytest.raises(UsageError, match="num_images is 23 there, 24 here"):
        write_shards(tmp_path, fake_batches(), **{**SET, "num_images": 24})
    assert contents(tmp_path) == before


def test_a_manifest_may_hold_what_json_holds(tmp_path):
    manifest = {"image_shape": (4, 4, 1), "guidance": None, "sampler": {"name": "ancestral"}}
    log = []
    for _ in range(2):
        write_shards(tmp_path, fake_batches(log=log), **{**SET, "manifest": manifest})
    assert log == list(range(SET["num_images"])), "the second call finds its own manifest"
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["image_shape"] == [4, 4, 1]
    assert written["guidance"] is None
    assert written["sampler"] == {"name": "ancestral"}


def test_images_of_unknown_origin_are_not_added_to(tmp_path):
    (tmp_path / "samples-00000-of-00003.npz").write_bytes(b"somebody's")
    with pytest.raises(UsageError, match="without a manifest"):
        write_shards(tmp_path, fake_batches(), **SET)
    assert contents(tmp_path) == {"samples-00000-of-00003.npz": b"somebody's"}


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file"):
        write_shards(tmp_path / "out", fake_batches(), **SET)


@pytest.mark.parametrize("name", ["num_images", "shard_size"])
def test_sizes_below_one_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match=f"{name} is 0"):
        write_shards(tmp_path, fake_batches(), **{**SET, name: 0})


def test_a_full_disk_is_one_sentence_and_keeps_the_whole_shards(tmp_path, monkeypatch):
    write_shards(tmp_path / "whole", fake_batches(), **SET)
    written, fsync = [], os.fsync

    def filling(file):
        written.append(file)
        if len(written) == 3:  # the manifest and one shard fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        with pytest.raises(
            FailureError, match=r"samples-00001-of-00003.npz: No space left on device"
        ) as caught:
            write_shards(tmp_path / "out", fake_batches(), **SET)
    assert "\n" not in str(caught.value)
    whole, kept = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert kept == {name: whole[name] for name in ("manifest.json", "samples-00000-of-00003.npz")}
    write_shards(tmp_path / "out", fake_batches(), **SET)
    assert contents(tmp_path / "out") == whole


def test_reading_what_is_missing_or_damaged_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"holds no manifest.json"):
        read_shards(tmp_path)
    write_shards(tmp_path, fake_batches(), **SET)
    shard = tmp_path / "samples-00001-of-00003.npz"
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UsageError, match=r"lacks 1 of 3 shards, samples-00001-of-00003.npz first"):
        read_shards(tmp_path)
    other = (tmp_path / "samples-00000-of-00003.npz").read_bytes()
    texts = io.BytesIO()
    np.savez(texts, images=np.array(["a", "b"]), index=np.arange(2))
    for damaged in (whole[:100], b"", b"no archive", other, texts.getvalue()):
        shard.write_bytes(damaged)
        with pytest.raises(FailureError, match=r"samples-00001-of-00003.npz"):
            read_shards(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(FailureError, match=r"manifest.json is damaged"):
        read_shards(tmp_path)
