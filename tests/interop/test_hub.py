"""Names on the Hugging Face hub: what is downloaded of a model, and what is said without a network.

The client library is replaced: these tests use no network.
"""

import importlib.util
import logging
import sys
import types

import pytest

import ddpm_jax
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.experiments.model_files import is_foreign, open_network
from ddpm_jax.interop import hub

FILES = [
    ".gitattributes",
    "README.md",
    "model_index.json",
    "v1-4.ckpt",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00001-of-00002.bin",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",
]


@pytest.fixture
def client(monkeypatch):
    """A stand-in for huggingface_hub; `asked` has the calls, `error` is raised."""
    asked, state = [], types.SimpleNamespace(error=None, cached=None, listed=None, user="me")

    class HfApi:
        def list_repo_files(self, name, revision=None):
            state.listed = (name, revision)
            if state.error:
                raise state.error
            return FILES

    def snapshot_download(name, **kwargs):
        asked.append((name, kwargs))
        if state.error and not state.cached:
            raise OSError("no snapshot") if kwargs.get("local_files_only") else state.error
        return state.cached or "/cache/sd"

    module = types.ModuleType("huggingface_hub")
    module.HfApi, module.snapshot_download = HfApi, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    state.asked = asked
    return state


def test_a_path_that_exists_is_taken_as_it_is(tmp_path, client):
    (tmp_path / "owner/model").mkdir(parents=True)
    assert hub.resolve(tmp_path / "owner/model") == tmp_path / "owner/model"
    assert not client.asked


def test_one_copy_of_the_weights_is_downloaded(client):
    assert str(hub.resolve("owner/model")) == "/cache/sd"
    ((name, kwargs),) = client.asked
    assert name == "owner/model"
    weights = {file for file in kwargs["allow_patterns"] if not file.endswith((".json", ".txt"))}
    assert weights == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.bin",
    }
    assert {"model_index.json", "tokenizer/merges.txt"} <= set(kwargs["allow_patterns"])
    assert not any("safety_checker" in file for file in kwargs["allow_patterns"])


def test_the_folders_to_download_can_be_chosen(client):
    hub.resolve("owner/model", folders=("text_encoder",))
    weights = [
        file
        for file in client.asked[0][1]["allow_patterns"]
        if "model" in file.split("/")[-1] and ".json" not in file
    ]
    assert weights == ["text_encoder/model.safetensors"]


def test_a_model_without_folders_has_its_weights_beside_its_config(client, monkeypatch):
    files = [
        "config.json",
        "merges.txt",
        "vocab.json",
        "model.safetensors",
        "pytorch_model.bin",
        "README.md",
    ]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name, revision: files)
    hub.resolve("owner/model")
    assert client.asked[0][1]["allow_patterns"] == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "vocab.json",
    ]


def test_a_variant_is_downloaded_where_there_is_one(client):
    hub.resolve("owner/model", variant="fp16")
    wanted = client.asked[0][1]["allow_patterns"]
    assert "text_encoder/model.fp16.safetensors" in wanted
    assert "text_encoder/model.safetensors" not in wanted
    assert "vae/diffusion_pytorch_model.bin" in wanted


def test_without_a_network_what_was_downloaded_before_is_taken(client):
    client.error, client.cached = OSError("no route to host"), "/cache/old"
    assert str(hub.resolve("owner/model")) == "/cache/old"
    ((name, kwargs),) = client.asked
    assert name == "owner/model"
    assert kwargs["local_files_only"]


def test_without_a_network_and_a_copy_there_is_one_sentence(client):
    client.error = OSError("no route to host\nmore")
    with pytest.raises(FailureError, match=r"owner/model .* hub \(no route to host\): look at"):
        hub.resolve("owner/model")


def test_what_the_client_says_of_each_try_is_not_printed(client, monkeypatch, caplog):
    said = logging.getLogger("huggingface_hub.utils._http").warning

    def list_repo_files(self, name, revision=None):
        said("Retrying in 1s [Retry 1/5].")
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", list_repo_files)
    client.error = OSError("no route to host")
    with pytest.raises(FailureError):
        hub.resolve("owner/model")
    assert not caplog.records
    said("of another time")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("package", ["httpx", "httpx2", "httpcore2", "requests"])
def test_an_error_of_a_client_is_one_sentence_whatever_its_version(client, package):
    """huggingface_hub 2 raises errors of httpx2, which are no OSError."""
    client.error = type("ConnectError", (Exception,), {"__module__": f"{package}._exceptions"})(
        "no route to host"
    )
    with pytest.raises(FailureError, match=r"owner/model .* hub \(no route to host\): look at"):
        hub.resolve("owner/model")


def test_a_defect_of_our_own_keeps_its_traceback(client):
    client.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        hub.resolve("owner/model")


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("owner/model", None),
        ("hub:owner/model", None),
        ("owner/model@v1.0", "v1.0"),
        ("hub:owner/model@refs/pr/1", "refs/pr/1"),
    ],
)
def test_a_name_may_say_the_hub_and_a_revision_of_listing_and_download(client, name, revision):
    hub.resolve(name)
    assert client.listed == ("owner/model", revision)
    assert client.asked[0][0] == "owner/model"
    assert client.asked[0][1]["revision"] == revision


def test_a_revision_is_asked_for_of_the_copy_that_is_kept(client):
    client.error, client.cached = OSError("offline"), "/cache/old"
    hub.resolve("owner/model@v1")
    assert client.asked[0][1]["revision"] == "v1"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"/c/hub/models--owner--my-model.1/snapshots/{'0a' * 20}", "owner/my-model.1"),
        (f"/c/models--a--b--c/snapshots/{'0a' * 20}/unet/config.json", "a/b--c"),
        ("/c/models--owner--model/snapshots/main", None),
        (f"/c/models--owner/snapshots/{'0a' * 20}", None),
        ("runs/digits", None),
    ],
)
def test_the_origin_of_files_in_the_cache_is_their_name_and_commit(path, name):
    assert hub.origin(path) == (f"{name}@{'0a' * 20}" if name else path)


@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "../model", "/owner/model", "owner/", "a b/c", "a/b@", "a/b@c d"]
)
def test_what_is_no_name_is_not_looked_up(client, name):
    with pytest.raises(UsageError, match="is no file and no directory"):
        hub.resolve(name)
    assert not client.asked


def test_a_file_that_is_missing_is_not_asked_for_on_the_hub(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("nowhere/cifar.pt", "runs/it.safetensors", "runs/model"):
        with pytest.raises(UsageError, match=f"^{name} is no file and no directory"):
            open_network(name)
        assert not is_foreign(name)
    with pytest.raises(UsageError, match=r"hub, give it as hub:runs/model\.$"):
        open_network("runs/model")
    assert not client.asked
    assert client.listed is None
    for name in ("hub:runs/model", "hub:owner/model.pt"):
        hub.resolve(name)
        assert client.listed == (name.removeprefix("hub:"), None)


@pytest.mark.parametrize("name", ["hub:", "hub:foo", "hub:a/b c"])
def test_a_hub_name_without_an_owner_is_called_that(client, name):
    for read in (hub.resolve, open_network, ddpm_jax.load):
        with pytest.raises(UsageError, match=f"^{name} is no name on the .* as hub:owner/model"):
            read(name)
    assert not client.asked


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package huggingface_hub: .*\[hub\]"):
        hub.resolve("owner/model")
