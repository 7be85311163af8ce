"""`ddpm-jax import` and `verify`: networks of other projects as runs, with certificates.

What a network computes is proved in `tests/families`.
"""

import contextlib
import io
import json
import re
import shutil

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.cli import import_model
from ddpm_jax.errors import UsageError
from ddpm_jax.interop.containers import open_container
from ddpm_jax.tasks.certificates import CERTIFICATE, tensors_digest

from ..conftest import GOLDENS

COMMIT = "0123456789" * 4
MODELS = ("class_conditional", "scale_shift_resnet")  # of diffusers
PORT = GOLDENS / "checkpoints/pytorch_ports/ddim_training/ckpt.pth"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """(what the command said, the run, the file it was imported from)."""
    folder = tmp_path_factory.mktemp("import")
    cache = folder / f"models--owner--model/snapshots/{COMMIT}"  # as files of the hub are kept
    cache.mkdir(parents=True)
    source = shutil.copy(PORT, cache / "ckpt.pth")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert import_model.main([str(source), "--out", str(folder / "run")]) == 0
    return said.getvalue(), folder / "run", source


@pytest.mark.full
def test_it_says_what_it_found_and_what_it_assumes(imported):
    said, run, _ = imported
    assert said.startswith("a PyTorch port of DDPM: 285,667 parameters (raw), 285,667 parameters")
    assert f"  from hub:owner/model/ckpt.pth@{COMMIT}\n" in said
    assert "  weights = ema, assumed: images are made with the average; --weights raw" in said
    assert "  model.ch_mult = 1,1\n" in said
    assert "  diffusion.schedule = linear, assumed: " in said
    assert "  not read: the state of an optimiser\n" in said
    assert said.endswith(f"--ckpt {run}\n")


@pytest.mark.full
def test_the_certificate_has_the_digests_of_the_tensors_in_the_file(imported):
    _, run, source = imported
    certificate = json.loads((run / CERTIFICATE).read_text())
    groups = open_container(source).groups
    raw = {name.removeprefix("module."): value for name, value in groups["0"].items()}
    assert certificate["weights"]["raw"]["sha256"] == tensors_digest(raw)
    assert certificate["weights"]["ema"]["sha256"] == tensors_digest(groups["4"])
    assert certificate["weights"]["ema"]["tensors"] == len(groups["4"])
    model = ddpm_jax.load(source)
    x_0 = model.sample(1, sampler="ddim", steps=2, seed=0, trajectory=True).x_0[-1]
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(certificate["image"][name], getattr(x_0, name)(), atol=1e-5)
    raw["conv_in.bias"] = np.nextafter(raw["conv_in.bias"], np.float32(9))
    assert certificate["weights"]["raw"]["sha256"] != tensors_digest(raw)


@pytest.mark.full
def test_the_run_is_the_model_that_is_loaded_from_the_file(imported):
    _, run, source = imported
    for raw in (False, True):
        here, there = (ddpm_jax.load(path, raw_weights=raw).trained for path in (run, source))
        jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
        assert here.sha256 == there.sha256
        assert here.model.config.model == there.model.config.model


@pytest.mark.full
def test_verify_repeats_every_check_and_sees_a_changed_source(invoke, imported, tmp_path):
    _, run, source = imported
    result = invoke("verify", run)
    assert result.code == 0, result.out
    assert result.out.count(": equal\n") == 5
    data = bytearray(source.read_bytes())
    weight = open_container(source).groups["4"]["conv_in.weight"].tobytes()
    data[data.find(weight) + 1] ^= 1  # a low bit of one number
    (tmp_path / "changed.pth").write_bytes(data)
    result = invoke("verify", run, "--source", tmp_path / "changed.pth")
    assert result.code == 1
    assert "ema weights in " in result.out
    assert result.out.count(": equal\n") == 4
    for wrong in (tmp_path / "gone.pth", GOLDENS / "checkpoints/openai/guided_64_like/model.pt"):
        result = invoke("verify", run, "--source", wrong)
        assert result.code == 1
        assert f"tensors in {wrong}: other files: " in result.out


@pytest.mark.full
def test_python_functions_do_what_the_commands_do(imported, tmp_path):
    _, run, source = imported
    found = ddpm_jax.import_model(source, tmp_path / "run")
    by_command = json.loads((run / CERTIFICATE).read_text())
    assert json.loads(json.dumps(found.certificate)) == by_command
    checks = ddpm_jax.verify(tmp_path / "run", source)
    assert [check.outcome for check in checks] == ["equal"] * 5
    ddpm_jax.load(run).write_network(tmp_path / "ours.safetensors")
    np.testing.assert_array_equal(
        open_container(tmp_path / "ours.safetensors").groups[""]["conv_in.bias"],
        open_container(source).groups["4"]["conv_in.bias"],
    )


@pytest.mark.full
def test_verify_says_that_the_source_is_gone(invoke, imported, tmp_path):
    run = shutil.copytree(imported[1], tmp_path / "run")
    certificate = json.loads((run / CERTIFICATE).read_text())
    certificate["source"]["path"] = str(tmp_path / "gone.pth")
    (run / CERTIFICATE).write_text(json.dumps(certificate))
    result = invoke("verify", run)
    assert result.code == 0
    name = f"hub:owner/model/ckpt.pth@{COMMIT}"
    assert f"gone.pth: not compared: the files are gone, give {name} as" in result.out


@pytest.mark.full
def test_verify_sees_changed_weights(invoke, imported, tmp_path):
    run = shutil.copytree(imported[1], tmp_path / "run")
    certificate = json.loads((run / CERTIFICATE).read_text())
    certificate["result"]["sha256"] = "0" * 64
    certificate["image"]["mean"] += 0.01
    (run / CERTIFICATE).write_text(json.dumps(certificate))
    result = invoke("verify", run)
    assert result.code == 1
    assert "weights of the run: SHA-256 " in result.out
    assert "image: mean " in result.out


@pytest.mark.full
@pytest.mark.parametrize("is_missing", [False, True])
def test_verify_sees_what_is_wrong_in_a_certificate_also_without_the_source(
    invoke, imported, tmp_path, is_missing
):
    run = shutil.copytree(imported[1], tmp_path / "run")
    certificate = json.loads((run / CERTIFICATE).read_text())
    certificate["source"]["path"] = str(tmp_path / "gone.pth")
    del certificate["image"]
    says = ["image: the certificate has none, and this model makes one"]
    if is_missing:
        del certificate["weights"]["ema"], certificate["weights"]["raw"]["in_the_run"]
        says += [
            "ema weights: the certificate has no digests of them",
            "raw weights of the run: the certificate has no digest of them",
        ]
    else:
        certificate["weights"]["raw"]["in_the_run"] = "0" * 64
        says += ["raw weights of the run: SHA-256 "]
    (run / CERTIFICATE).write_text(json.dumps(certificate))
    result = invoke("verify", run)
    assert result.code == 1
    assert all(text in result.out for text in says)


@pytest.mark.full
def test_relative_paths_are_recorded_as_absolute_ones(tmp_path, monkeypatch):
    shutil.copy(PORT, tmp_path / "ckpt.pth")
    monkeypatch.chdir(tmp_path)
    ddpm_jax.import_model("ckpt.pth", "run")
    assert ddpm_jax.load("run").trained.origin == str(tmp_path / "run")
    monkeypatch.chdir(tmp_path.parent)
    checks = ddpm_jax.verify(tmp_path / "run")
    assert [check.outcome for check in checks] == ["equal"] * 5


@pytest.mark.full
def test_a_config_that_is_not_that_of_the_weights_beside_it_is_named(invoke, tmp_path):
    folders = [GOLDENS / f"checkpoints/diffusers/{name}" for name in MODELS]
    weights, config = (shutil.copytree(at, tmp_path / at.name) / "unet" for at in folders)
    run, mixed = tmp_path / "run", tmp_path / "mixed"
    assert invoke("import", weights.parent, "--out", run).code == 0
    shutil.copytree(config.parent, mixed)
    shutil.copy(weights / "diffusion_pytorch_model.safetensors", mixed / "unet")
    says = f"{mixed}/unet/config.json is not the config of the raw weights there. The diffusers"
    with pytest.raises(UsageError, match=re.escape(says)):
        ddpm_jax.import_model(mixed, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    for source, said in (
        (config.parent, "other files: of another network than the run's. The diffusers state"),
        (mixed, "other files: condition.num_classes is 0, was 10, "),
    ):
        result = invoke("verify", run, "--source", source)
        assert result.code == 1
        assert f"tensors in {source}: {said}" in result.out


@pytest.mark.full
@pytest.mark.parametrize("kind", ["ema", "raw"])
def test_one_kind_of_weights_is_imported_alone(invoke, refused, tmp_path, kind):
    run = tmp_path / "run"
    weighting = "--config.diffusion.weighting=learned"  # whose network is of training alone
    result = invoke("import", PORT, "--out", run, "--weights", kind, weighting)
    assert result.code == 0, result.err
    assert f"285,667 parameters ({kind})\n" in result.out
    assert "assumed: images are made with" not in result.out
    parts = [line.split(" s  ")[1] for line in result.err.splitlines()]
    assert parts == [
        f"reading the {kind} weights",
        f"comparing the {kind} weights, written back, with the files",
        "making the image of the certificate",
        "writing the run",
    ]
    certificate = json.loads((run / CERTIFICATE).read_text())
    assert certificate["result"]["weights"] == kind
    assert list(certificate["weights"]) == [kind]
    here = ddpm_jax.load(run).params
    there = ddpm_jax.load(PORT, raw_weights=kind == "raw").params
    jax.tree.map(np.testing.assert_array_equal, here, there)
    assert invoke("verify", run).out.count(": equal\n") == 3
    record = ddpm_jax.load(run).trained
    assert record.average == kind
    if kind == "ema":
        refused("sample", "--ckpt", run, "--raw_weights", says=["holds no weights as trained"])
    else:
        assert ddpm_jax.load(run, raw_weights=True).trained.sha256 == record.sha256


def test_weights_that_the_files_do_not_have_are_refused(refused, tmp_path):
    source = GOLDENS / "checkpoints/openai/guided_64_like/model.pt"
    says = ["weights is ema: these files have the raw weights alone"]
    refused("import", source, "--out", tmp_path / "run", "--weights", "ema", says=says)


def test_what_cannot_be_is_refused_and_leaves_nothing(refused, tmp_path):
    out = tmp_path / "run"
    refused("import", says=["Name one file or directory to import"])
    refused("import", PORT, says=["--out is missing"])
    refused("import", tmp_path / "none.pt", "--out", out, says=["none.pt is no file"])
    wrong = "--config.model.ch=64"
    refused("import", PORT, "--out", out, wrong, says=["model.ch is 32 by the files, and 64"])
    sd1 = GOLDENS / "sd/sd1"
    refused("import", sd1, "--out", out, says=["is Stable Diffusion, which needs no import"])
    own = tmp_path / "own"
    (own / "checkpoints/7").mkdir(parents=True)
    refused("import", own, "--out", out, says=["own is a run of this package, which needs no"])
    part = sd1 / "vae"
    refused("import", part, "--out", out, says=["is one part of a model, AutoencoderKL"])
    (tmp_path / "empty.pt").touch()
    refused(
        "import", tmp_path / "empty.pt", "--out", out, says=["(it is empty): download it again"]
    )
    with pytest.raises(UsageError, match="variant is for a directory, and "):
        ddpm_jax.load(PORT, variant="fp16")
    other = tmp_path / "other.npz"
    np.savez(other, first=np.zeros(3, np.float32))
    refused("import", other, "--out", out, says=["an NPZ file, but its tensors (first) are of no"])
    weights = dict(open_container(PORT).groups["4"])
    weights["conv_in.bias"] = np.full_like(weights["conv_in.bias"], np.nan)
    np.savez(tmp_path / "nan.npz", **weights)
    with pytest.raises(UsageError, match=r"/nan\.npz: conv_in\.bias of .* nan, which is no finite"):
        ddpm_jax.load(tmp_path / "nan.npz")
    refused("verify", tmp_path, says=[f"has no {CERTIFICATE}"])
    assert not out.exists()


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("condition.null_class=true", "is True, and the network in the files has no classes"),
        ("train.batch_size=7", "train.batch_size is of training, and says nothing of the network"),
        ("init_from=runs/x", "init_from is of training, and says nothing of the network"),
    ],
)
def test_a_field_that_an_import_does_not_read_is_refused(refused, tmp_path, field, says):
    refused("import", PORT, "--out", tmp_path / "run", f"--config.{field}", says=[says])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (["data.name=nonsense"], "Unknown dataset 'nonsense': give digits, emoji, folder, or"),
        (["data.name=cifr10/plain"], "tensorflow-datasets. Did you mean 'cifar10'?"),
        (["data.train_split=trian"], "Unknown split of a folder 'trian'"),
        (["data.name=emoji", "data.test_split=valid"], "split of the bundled emoji 'valid'"),
    ],
)
def test_data_that_are_nowhere_are_refused_before_anything_is_written(
    refused, tmp_path, fields, says
):
    run, fields = tmp_path / "run", [f"--config.{field}" for field in fields]
    refused("import", PORT, "--out", run, *fields, says=[says])
    assert not run.exists()


def test_a_damaged_certificate_is_a_failure_in_a_sentence(refused, tmp_path):
    (tmp_path / CERTIFICATE).write_text("{}")
    refused("verify", tmp_path, code=1, says=["is damaged: it has no family"])


@pytest.mark.slow
def test_a_snapshot_of_edm_is_imported_verified_and_sampled_by_heuns_method(invoke, tmp_path):
    source, run = GOLDENS / "checkpoints/edm/network-snapshot-000000.pkl", tmp_path / "run"
    assert (
        "every tensor read, and written back bit for bit"
        in invoke("import", source, "--out", run).out
    )
    result = invoke("verify", run)
    assert result.code == 0
    assert result.out.count(": equal\n") == 3
    result = invoke("sample", "--ckpt", run, "--num_samples", 2)
    assert "heun, 18 steps, 35 network evaluations" in result.out
