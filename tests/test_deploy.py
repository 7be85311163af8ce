"""The files in deploy/, by their own validators where installed, and by running their scripts."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest

from ddpm_jax.cli import command, train
from ddpm_jax.experiments import config as configs

ROOT = pathlib.Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))


def _tool(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def _passes(*argv):
    done = subprocess.run([str(argument) for argument in argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _manifests():
    yaml = pytest.importorskip("yaml")
    return {
        item["kind"]: item for item in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    }


def _arguments(name):
    """The arguments of train.py in a file, one string each."""
    if name == "kubernetes.yaml":
        (container,) = _manifests()["Job"]["spec"]["template"]["spec"]["containers"]
        return container["args"]
    return re.findall(
        r"--[\w.]+(?:=\S+)?", (DEPLOY / name).read_text().partition("python train.py")[2]
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
    assert os.access(path, os.X_OK)
    _passes("bash", "-n", path)
    _passes(_tool("shellcheck"), path)


def test_the_container_file_is_sound():
    _passes(_tool("hadolint"), DEPLOY / "Containerfile")


def test_what_the_container_file_copies_is_there_and_sent_to_the_builder():
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.+)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in sent


def test_the_container_has_every_extra_that_its_head_names():
    text = (DEPLOY / "Containerfile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = set(re.findall(r"EXTRA=(\w+)", text))
    assert named == {"cuda", "tpu", "test"}
    assert named | {"wandb"} <= extras.keys()


def test_the_container_installs_what_the_project_depends_on_and_the_extras():
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", "")
    program = re.search(r"^RUN python -c '(.+?)' > requirements.txt", text, re.MULTILINE)[1]
    command, environment = [sys.executable, "-c", program], os.environ | {"EXTRA": "test"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in ("test", "wandb", "gcs"):
        wanted += project["optional-dependencies"][extra]
    assert done.stdout.splitlines() == wanted


def test_the_manifest_is_valid_yaml_and_valid_kubernetes():
    _passes(
        _tool("yamllint"),
        "-d",
        "{extends: default, rules: {line-length: {max: 120}}}",
        DEPLOY / "kubernetes.yaml",
    )
    _passes(_tool("kubernetes-validate"), "--strict", DEPLOY / "kubernetes.yaml")


def test_the_processes_of_the_job_are_as_many_as_they_are_told_and_find_the_first():
    manifests = _manifests()
    job, (container,) = (
        manifests["Job"]["spec"],
        manifests["Job"]["spec"]["template"]["spec"]["containers"],
    )
    flags = dict(argument.lstrip("-").partition("=")[::2] for argument in container["args"])
    assert job["completions"] == job["parallelism"] == int(flags["num_processes"])
    host, port = flags["coordinator"].split(":")
    name, subdomain = manifests["Job"]["metadata"]["name"], job["template"]["spec"]["subdomain"]
    assert host == f"{name}-0.{subdomain}"
    assert subdomain == manifests["Service"]["metadata"]["name"]
    assert manifests["Service"]["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert int(port) == container["ports"][0]["containerPort"]
    (volume,) = job["template"]["spec"]["volumes"]
    assert (
        volume["persistentVolumeClaim"]["claimName"]
        == manifests["PersistentVolumeClaim"]["metadata"]["name"]
    )
    assert container["args"][0].startswith(container["volumeMounts"][0]["mountPath"])


@pytest.mark.parametrize("name", ["kubernetes.yaml", "slurm.sh", "train.sh"])
def test_the_flags_and_fields_are_those_of_train(capsys, name):
    with pytest.raises(SystemExit):
        command.run(train.main, ["--help"])
    page, found = capsys.readouterr().out, 0
    for argument in _arguments(name):
        flag = argument.partition("=")[0]
        if flag.startswith("--config."):
            configs.check_field(flag.removeprefix("--config."), name)
        elif flag.startswith("--"):
            assert f"  {flag} " in page or f"  {flag}\n" in page, flag
        found += flag.startswith("--")
    assert found >= 2


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Return stub("python", "exit 3"): a program of that name with this body.

    Its calls are logged to NAME.log.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name, script):
        log = tmp_path / f"{name}.log"
        (folder / name).write_text(f'#!/bin/bash\necho "$@" >> {log}\n{script}\n')
        (folder / name).chmod(0o755)
        return log

    return write


def test_train_sh_ends_as_train_does_and_passes_its_arguments(stub, tmp_path):
    workdir = tmp_path / "a run"
    (workdir / "checkpoints" / "300").mkdir(parents=True)
    for code in (0, 1, 2, 130):
        log = stub("python", f"exit {code}")
        done = subprocess.run([DEPLOY / "train.sh", workdir, "300", "--config=configs/digits.py"])
        assert done.returncode == code
    expected = (
        f"train.py --workdir {workdir} --config.train.num_steps=300 --config=configs/digits.py"
    )
    assert log.read_text().splitlines() == 4 * [expected]
    assert subprocess.run([DEPLOY / "train.sh", workdir], capture_output=True).returncode == 2


@pytest.mark.parametrize("step", [300, 299])
def test_in_a_bucket_train_sh_asks_python_whether_the_run_is_finished(stub, step):
    # Train.py ends well; the question is answered so
    log = stub("python", f'[ "$1" != -c ] || [ "$4" -eq {step} ]')
    done = subprocess.run([DEPLOY / "train.sh", "gs://bucket/run", "300"])
    assert done.returncode == (0 if step == 300 else 75)
    assert log.read_text().endswith("gs://bucket/run 300\n")


def test_train_sh_passes_sigterm_on_waits_for_the_save_and_asks_to_be_started_again(stub, tmp_path):
    (tmp_path / "checkpoints" / "200").mkdir(parents=True)
    log = stub(
        "python",
        "trap 'sleep 0.5; touch saved; exit 0' TERM; touch started; for i in {1..200}; do sleep "
        "0.05; done",
    )
    process = subprocess.Popen([DEPLOY / "train.sh", tmp_path, "300"], cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert (tmp_path / "saved").exists()
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("finished", "seconds_left", "again"),
    [(False, 100, True), (False, 9000, False), (True, 100, False)],
)
def test_the_slurm_job_queues_itself_again_where_its_time_was_up(
    stub, tmp_path, monkeypatch, finished, seconds_left, again
):
    requeued = stub("scontrol", "")
    started = stub("srun", f"mkdir -p {tmp_path}/run/checkpoints/{300 if finished else 200}")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    for name, value in {
        "WORKDIR": "run",
        "VENV": "venv",
        "STEPS": "300",
        "SLURM_JOB_ID": "17",
    }.items():
        monkeypatch.setenv(name, value if value.isdigit() else str(tmp_path / value))
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + seconds_left))
    done = subprocess.run(["bash", DEPLOY / "slurm.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train.py --config configs/ddpm_cifar10.py" in started.read_text()
    assert started.read_text().rstrip().endswith("--distributed")
    assert requeued.exists() == again
    assert not again or requeued.read_text() == "requeue 17\n"


def test_a_slurm_job_that_fails_is_not_queued_again(stub, tmp_path, monkeypatch):
    requeued = stub("scontrol", "")
    stub("srun", "exit 1")
    monkeypatch.setenv("VENV", str(tmp_path))
    (tmp_path / "bin" / "activate").touch()
    assert subprocess.run(["bash", DEPLOY / "slurm.sh"], capture_output=True).returncode == 1
    assert not requeued.exists()
