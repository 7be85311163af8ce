"""The flags of a command that several processes run together; tests/processes starts several."""

import pytest


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_half_given_flags_are_refused(refused, name):
    ckpt = [] if name == "train" else ["--ckpt", "anywhere"]
    refused(
        name,
        *ckpt,
        "--num_processes",
        2,
        says=["--num_processes is for several processes: give --distributed"],
    )
    refused(
        name, *ckpt, "--connect_timeout", 2, says=["--connect_timeout is for several processes"]
    )
    some = [*ckpt, "--distributed", "--coordinator", "host:1234"]
    refused(name, *some, says=["--num_processes and --process_id are missing"])
    refused(name, *some, "--process_id", 0, says=["--num_processes is missing: give all of"])
    refused(
        name,
        *some,
        "--process_id",
        2,
        "--num_processes",
        2,
        says=["--process_id is 2: of 2 processes", "0 to 1"],
    )
    refused(name, "--num_processes", 0, says=["num_processes", "whole number in 1.."])


def test_a_picture_of_its_own_is_drawn_by_one_process(refused):
    refused(
        "sample",
        "--ckpt",
        "anywhere",
        "--distributed",
        "--shared_latents",
        says=["leave out --distributed"],
    )
