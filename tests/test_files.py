"""What is opened is a file: pipes, devices and folders are named and never waited for."""

import hashlib
import os
import socket

import pytest

from ddpm_jax.errors import FailureError
from ddpm_jax.files import NotAFile, file_sha256, open_file, read_file, reporting


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """Paths that are no files, and a word that names each."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # the name of a socket is at most a hundred letters long
    server.bind("socket")
    yield {"pipe": "a named pipe", "folder": "a folder", "link": "a device", "socket": "a socket"}
    server.close()


def test_what_is_no_file_is_named_and_not_opened(strange):
    for name, what in [*strange.items(), ("/dev/zero", "a device")]:
        for read in (open_file, read_file, file_sha256):
            with pytest.raises(NotAFile, match=what):
                read(name)
        with (
            pytest.raises(FailureError, match=rf"{name} is {what}, and a file is expected: "),
            reporting(name, "read"),
        ):
            read_file(name)


def test_a_file_and_a_link_to_one_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 1_000_000)
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_file(tmp_path / name) == b"abc" * 1_000_000
        assert read_file(tmp_path / name, largest=4) == b"abca"
        assert file_sha256(tmp_path / name) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "none")
