"""Paths in a bucket: what can be done with them, and the sentence for every way in which it
cannot."""

import asyncio
import importlib.util
import pathlib
import re
import urllib.parse
import urllib.request

import numpy as np
import pytest
import requests
from safetensors.numpy import save

from ddpm_jax import files
from ddpm_jax.checkpoints.reader import DamagedCheckpoint, check_whole
from ddpm_jax.cli import command
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.files import (
    as_path,
    check_place,
    is_remote,
    local_copy,
    local_copy_of_files,
    move_folder,
    reporting,
    write_atomically,
)
from ddpm_jax.interop.containers import open_container


def test_names_of_this_machine_stay_what_they_were():
    for name in ("runs/digits", "/tmp/x", ".", "a b"):
        assert as_path(name) == pathlib.Path(name)
        assert isinstance(as_path(pathlib.Path(name)), pathlib.Path)
        assert not is_remote(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [("s3://b/x", "gs://BUCKET/DIR"), ("http://x", "no place"), ("gs://", "names no bucket")],
)
def test_other_addresses_are_refused(name, words):
    with pytest.raises(UsageError, match=words):
        as_path(name)


def test_without_gcsfs_the_extra_is_named(monkeypatch, refused):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    files._bucket_paths.cache_clear()
    try:
        assert "pip install -e '.[gcs]'" in refused("train", "--workdir", "gs://bucket/x")
    finally:
        files._bucket_paths.cache_clear()


# Gcsfs's way, in a thread of its own
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_what_is_written_is_read_and_replaced_whole(folder):
    path = folder / "a" / "b.txt"
    assert not path.exists()
    for data in (b"one", b"", b"x" * 12_000_000):  # the last in several requests
        write_atomically(str(path), data)
        assert path.read_bytes() == data
    assert [child.name for child in folder.iterdir()] == ["a"]
    assert as_path(str(path)) == path


def test_what_another_process_writes_is_seen_at_once(server, folder):
    write_atomically(folder / "shared" / "mine", b"")
    assert [path.name for path in (folder / "shared").iterdir()] == ["mine"]
    name = str(folder / "shared" / "theirs").removeprefix("gs://bucket/")
    url = f"{server}/upload/storage/v1/b/bucket/o?uploadType=media&name={urllib.parse.quote(name, safe='')}"
    urllib.request.urlopen(
        urllib.request.Request(url, b"data", {"Content-Type": "text/plain"})
    ).close()
    assert (folder / "shared" / "theirs").exists()
    assert sorted(path.name for path in (folder / "shared").iterdir()) == ["mine", "theirs"]


def test_a_folder_moves_with_all_that_is_in_it(folder):
    for name in ("a", "deep/b", "deep/er/c"):
        write_atomically(folder / "from" / name, name.encode())
    move_folder(folder / "from", folder / "to")
    assert not (folder / "from").is_dir()
    for name in ("a", "deep/b", "deep/er/c"):
        assert (folder / "to" / name).read_bytes() == name.encode()


def test_a_local_copy_is_made_once_and_anew_when_the_objects_change(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write_atomically(folder / "set" / "1.0" / "x", b"old")
    copy = local_copy(folder / "set" / "1.0")
    assert copy.parts[-2:] == ("set", "1.0")
    assert (copy / "x").read_bytes() == b"old"
    (copy / "mark").touch()
    assert local_copy(folder / "set" / "1.0") == copy
    write_atomically(folder / "set" / "1.0" / "x", b"newer")
    assert (local_copy(folder / "set" / "1.0") / "x").read_bytes() == b"newer"
    assert (copy / "mark").exists()


def test_an_object_whose_name_leads_out_of_the_folder_is_not_copied(folder, tmp_path, monkeypatch):
    class Store:
        def find(self, name, detail):
            return {f"{name}/../../../outside": {"size": 4}}

        def get_file(self, path, there):
            pytest.fail(f"{there} was written")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("fsspec.url_to_fs", lambda url: (Store(), url.removeprefix("gs://")))
    with pytest.raises(FailureError, match=r"hostile has an object named .*leads out of it"):
        local_copy(folder / "hostile")


def test_some_files_of_a_folder_are_copied(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("some/a.index", "some/a.data", "some/b.index", "some/a/c"):
        write_atomically(folder / name, name.encode())
    copy = local_copy_of_files(folder / "some" / "a.index", "a")
    assert copy.read_bytes() == b"some/a.index"
    assert {path.name for path in copy.parent.iterdir()} == {"a.index", "a.data"}
    with pytest.raises(FileNotFoundError):
        local_copy_of_files(folder / "some" / "c", "c")


def test_weights_in_a_bucket_are_copied_and_opened(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = save({"w": grid})
    for name, data in {
        "w/x.pt": content,
        "w/y.pt": content,
        "w/unet/diffusion_pytorch_model.safetensors": content,
        "w/unet/config.json": b'{"_class_name": "UNet2DModel"}',
        "w/model.safetensors.index.json": b'{"weight_map": {"w": "model-1.safetensors"}}',
        "w/model-1.safetensors": content,
    }.items():
        write_atomically(folder / name, data)
    names = ("x.pt", "unet", "model.safetensors.index.json")
    opened = [open_container(folder / "w" / name) for name in names]
    for found in opened:
        np.testing.assert_array_equal(found.groups[""]["w"], grid)
    assert list(opened[0].path.parent.iterdir()) == [opened[0].path]
    assert opened[1].facts == {"config.json": {"_class_name": "UNet2DModel"}}
    with pytest.raises(UsageError, match="neither a file nor a folder in a bucket"):
        open_container(folder / "w" / "nothing")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            "gs://absent/run",
            "workdir: there is no bucket gs://absent: make it with gcloud storage buckets create",
        ),
        (
            "gs://forbidden/run",
            "cannot be read: Google Cloud forbids it: the account that asks needs the role",
        ),
        (
            "gs://nameless/run",
            "cannot be read: Google Cloud does not know who asks: log in with gcloud auth",
        ),
        ("gs://read-only/run", "gs://read-only/run cannot be written: Google Cloud forbids it"),
    ],
)
def test_train_refuses_a_bucket_that_is_not_there_or_may_not_be_used(
    server, refused, config_file, place, words
):
    assert words in refused("train", "--config", config_file, "--workdir", place)


def test_a_checkpoint_that_is_not_there_is_named(server, refused):
    assert "--ckpt: there is no bucket gs://absent" in refused(
        "sample", "--ckpt", "gs://absent/run"
    )
    assert "There is no directory gs://bucket/nowhere" in refused(
        "evaluate", "--ckpt", "gs://bucket/nowhere"
    )


class _Hasty:
    """asyncio, but for the waits between attempts."""

    def __getattr__(self, name):
        return getattr(asyncio, name)

    async def sleep(self, _):
        pass


@pytest.fixture
def unreachable(server, monkeypatch):
    """Nobody listens where the clients look for the bucket."""
    import fsspec

    monkeypatch.setattr("gcsfs.retry.asyncio", _Hasty())
    store, _ = fsspec.url_to_fs("gs://bucket", finalize_on_close=True)
    monkeypatch.setattr(store, "_endpoint", "http://127.0.0.1:1")


def test_a_bucket_that_does_not_answer_is_a_failure(unreachable, refused, config_file):
    sentence = refused("train", "--config", config_file, "--workdir", "gs://bucket/run", code=1)
    assert (
        "workdir: gs://bucket/run cannot be read: Google Cloud Storage does not answer" in sentence
    )


def test_writing_to_a_bucket_that_does_not_answer_ends_in_a_sentence(unreachable):
    with (
        pytest.raises(
            FailureError,
            match=r"Cannot write gs://bucket/x: .* does not answer .* same command again",
        ),
        reporting("gs://bucket/x"),
    ):
        write_atomically("gs://bucket/x", b"data")


def test_a_checkpoint_out_of_reach_is_not_taken_for_a_damaged_one(folder, request):
    write_atomically(folder / "checkpoints" / "5" / "state" / "x", b"")
    for_state = folder / "checkpoints" / "5", ("state",)
    with pytest.raises(DamagedCheckpoint, match=r"its file state/SHA256SUMS is missing"):
        check_whole(*for_state)
    request.getfixturevalue("unreachable")
    with pytest.raises(
        FailureError, match=r"5 cannot be read \(.* does not answer .* left as it is"
    ) as caught:
        check_whole(*for_state)
    assert not isinstance(caught.value, DamagedCheckpoint)


@pytest.mark.parametrize(
    ("error", "path", "words"),
    [
        (
            ValueError("INTERNAL: gs://bucket/run-401/checkpoints/401/state"),
            "gs://bucket/run-401",
            "^INTERNAL: gs:",
        ),
        (
            ValueError("HTTP response code: 401 with body"),
            "gs://bucket/run",
            "does not know who asks",
        ),
        (FileNotFoundError("b/bucket/o/run"), "gs://bucket/run", "no such bucket or object"),
        (FileNotFoundError("No metadata in runs/401."), "runs", "^No metadata in runs/401$"),
        (TimeoutError(), "gs://bucket/run", r"does not answer \(TimeoutError\)"),
    ],
)
def test_a_bucket_speaks_where_there_is_one_and_a_step_is_no_answer_of_it(error, path, words):
    assert re.search(words, files.error_reason(error, path))


def test_a_mistake_of_this_program_is_not_taken_for_a_refusal(server):
    with pytest.raises(KeyError), reporting("gs://bucket/x"):
        raise KeyError("x")


def test_a_disk_is_not_asked(tmp_path):
    check_place(tmp_path / "nowhere", flag="--workdir", writing=True)
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_fails_anywhere_in_a_command_ends_in_a_sentence(capfd):
    def main(argv):
        raise requests.exceptions.ConnectionError("connection reset")

    assert command.run(main, []) == 1
    assert capfd.readouterr().err.startswith(
        "error: Storage fails: Google Cloud Storage does not answer (connection"
    )
