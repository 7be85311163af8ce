"""`ddpm-jax export`: a model for other programs. Runs that trained updates are exported in
`tests/experiments/test_fine_tuning_stable_diffusion.py`."""

import importlib.util
import json
import sys
import types

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import ddpm_jax
from ddpm_jax.interop.containers import open_container
from ddpm_jax.interop.diffusers_directory import read_pipeline

from ..conftest import GOLDENS

SD1 = GOLDENS / "sd/sd1"
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def updates(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 32)), rng.normal(size=(32, 2))
    tensors = {f"unet.{Q}.lora_A.weight": a, f"unet.{Q}.lora_B.weight": b}
    path = tmp_path / "lora.safetensors"
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, path)
    return path, b @ a


@pytest.mark.slow
def test_stable_diffusion_is_written_with_updates_merged_and_all_else_as_it_was(
    invoke, tmp_path, updates
):
    path, product = updates
    out = tmp_path / "merged"
    flags = ["--ckpt", SD1, "--lora", path, "--lora_scale", "0.5", "--to", "diffusers"]
    result = invoke("export", *flags, "--out", out, "--license", "openrail++")
    assert result.code == 0, result.err
    assert "license: openrail++" in (out / "README.md").read_text()
    before, found = read_pipeline(SD1), read_pipeline(out)
    assert dict(found.scheduler) | dict(before.scheduler) == dict(before.scheduler) | {
        name: found.scheduler[name] for name in found.scheduler.keys() - before.scheduler.keys()
    }
    for part in ("unet", "vae"):
        theirs, ours = getattr(before, part).tensors, getattr(found, part).tensors
        for name, value in theirs.items():
            wanted = value + 0.5 * product if name == f"{Q}.weight" else value
            name = name.replace(".query.", ".to_q.").replace(".key.", ".to_k.")
            name = name.replace(".value.", ".to_v.").replace(".proj_attn.", ".to_out.0.")
            np.testing.assert_allclose(ours[name].reshape(wanted.shape), wanted, rtol=0, atol=2e-6)
    assert (out / "tokenizer/merges.txt").exists()


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for huggingface_hub; `commits` has what was pushed."""
    commits = []

    class HfApi:
        def whoami(self):
            return {"name": "me"}

        def create_repo(self, repo, *, private, exist_ok):
            commits.append({"repo": repo, "private": private})

        def create_commit(self, repo, operations, *, commit_message):
            commits[-1]["files"] = dict(operations)
            return types.SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")

    module = types.ModuleType("huggingface_hub")
    module.HfApi = HfApi
    module.CommitOperationAdd = lambda *, path_in_repo, path_or_fileobj: (
        path_in_repo,
        path_or_fileobj,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return commits


@pytest.mark.full
def test_a_file_that_was_written_is_pushed_with_a_card(invoke, tmp_path, hub):
    source = GOLDENS / "checkpoints/openai/guided_64_like/model.pt"
    out = tmp_path / "model.pt"
    flags = ["--to", "openai", "--out", out, "--push", "me/guided", "--license", "mit", "--private"]
    result = invoke("export", source, *flags)
    assert result.code == 0, result.err
    assert "https://hub/me/guided/commit/1" in result.out
    (commit,) = hub
    assert (commit["repo"], commit["private"]) == ("me/guided", True)
    assert commit["files"]["model.pt"] == out
    card = commit["files"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: guided-diffusion\nlicense: mit\n---\n\n# guided\n")
    tensors = open_container(source).groups[""]
    assert f"| {len(tensors):,}, {sum(x.size for x in tensors.values()):,} values |" in card
    assert "model = UNetModel(" in card


@pytest.mark.full
def test_a_directory_for_diffusers_is_pushed_with_the_card_in_it(trained, tmp_path, hub):
    out = tmp_path / "digits"
    ddpm_jax.load(trained).write_diffusers(out, license="mit", push="hub:me/digits")
    (commit,) = hub
    assert commit["repo"] == "me/digits"
    assert commit["files"]["README.md"] == out / "README.md"
    written = {path for path in out.rglob("*") if path.is_file()}
    assert set(commit["files"].values()) == written
    assert "unet/diffusion_pytorch_model.safetensors" in commit["files"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--to", "diffusers"], "--out is missing"),
        (["--to", "diffusers", "--out", "{tmp}"], "exists: name a new directory"),
        (["--to", "lora", "--out", "{tmp}/new.safetensors"], "is no training run"),
        (["--to", "lora", "--out", "{tmp}/new"], "does not end in .safetensors"),
        (["--lora_scale", "2", "--out", "{tmp}/new"], "there is no lora"),
        (["--to", "lora", "--lora", "{tmp}/any", "--out", "{tmp}/x"], "leave one out"),
        (["--out", "{tmp}/new", "--push", "a/b/c"], "give a name on the Hugging Face hub"),
        (["--out", "{tmp}/new", "--push", "a/b@main"], "push is a/b@main: give a name on"),
        (["--out", "{tmp}/new", "--private"], "private is for push"),
        (
            ["--to", "openai", "--out", "{tmp}/x.pt", "--license", "mit"],
            "license is for the model card, and a file has one only with push",
        ),
        (["--to", "nonsense"], "Unknown format 'nonsense': choose one of diffusers, lora"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_sentence(invoke, tmp_path, flags, says):
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    result = invoke("export", "--ckpt", SD1, *flags)
    assert result.code == 2, result.err
    assert says in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_run_without_updates_is_refused_in_a_sentence(refused, trained, tmp_path):
    out = tmp_path / "new.safetensors"
    says = ["trained all weights (lora.rank is 0)"]
    refused("export", "--ckpt", trained, "--to", "lora", "--out", out, says=says)
    assert not out.exists()


@pytest.mark.full
@pytest.mark.parametrize("file", ["model.safetensors", "model.pt"])
def test_a_network_of_openais_is_given_back_as_its_file(invoke, tmp_path, file):
    source = GOLDENS / "checkpoints/openai/guided_64_like/model.pt"
    out = tmp_path / file
    result = invoke("export", source, "--to", "openai", "--out", out)
    assert result.code == 0, result.err
    assert "for UNetModel(" in result.out
    assert "resblock_updown=True" in result.out
    wanted, found = (open_container(path).groups[""] for path in (source, out))
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.full
def test_a_run_is_written_under_our_names_with_its_config_and_under_the_original_ones(
    invoke, trained, tmp_path
):
    params = ddpm_jax.load(trained).trained.params
    ours = tmp_path / "ours.safetensors"
    assert invoke("export", trained, "--to", "safetensors", "--out", ours).code == 0
    found = open_container(ours)
    assert json.loads(found.facts["config"])["model"]["ch"] == 32
    for path, value in flatten_dict(params, sep=".").items():
        np.testing.assert_array_equal(found.groups[""][path], value)
    theirs = tmp_path / "theirs.safetensors"
    assert invoke("export", trained, "--to", "original", "--out", theirs).code == 0
    kernel = params["down_0_block_0"]["conv1"]["kernel"]
    variables = open_container(theirs).groups[""]
    np.testing.assert_array_equal(variables["model/down_0/block_0/conv1/W"], kernel)
    assert len(variables) == len(found.groups[""])


@pytest.mark.full
def test_a_run_over_pixels_is_written_for_ddpm_pipeline_and_read_back(invoke, trained, tmp_path):
    out = tmp_path / "exported"
    result = invoke("export", trained, "--to", "diffusers", "--out", out)
    assert result.code == 0, result.err
    assert json.loads((out / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    ours, theirs = (ddpm_jax.load(path).trained for path in (trained, out))
    jax.tree.map(np.testing.assert_array_equal, theirs.params, ours.params)
    assert theirs.model.config.diffusion.schedule == ours.model.config.diffusion.schedule


def test_what_another_project_lacks_is_refused(refused, trained, tmp_path):
    out = tmp_path / "new.safetensors"
    refused("export", trained, "--to", "openai", "--out", out, says=["time_embedding"])
    openai = GOLDENS / "checkpoints/openai/improved_cifar_like/model.pt"
    says = ["num_heads is 4, and in the original code it is always 1"]
    refused("export", openai, "--to", "original", "--out", out, says=says)
    refused("export", trained, trained, "--to", "openai", "--out", out, says=["Name one run"])
    wrong = tmp_path / "new.pt"
    refused("export", trained, "--to", "original", "--out", wrong, says=["not end in .safetensors"])
    assert not out.exists()
