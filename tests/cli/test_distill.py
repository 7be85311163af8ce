"""`ddpm-jax distill`: a small run made of another, sampled in two evaluations, and certified."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.checkpoints.reader import read_config
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import override
from ddpm_jax.experiments.few_steps import student_methods
from ddpm_jax.experiments.fine_tuning import find_beginning
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.measuring import teacher as teachers
from ddpm_jax.measuring.distillation import teacher_steps
from ddpm_jax.samplers.consistency import few_levels
from ddpm_jax.tasks.sampling import make_generator
from ddpm_jax.tasks.sampling_settings import Sampling
from ddpm_jax.training_runs import distilling
from ddpm_jax.training_runs.distilling import Distillation, distill_config, settled

from ..conftest import GOLDENS


@pytest.fixture(scope="module")
def teacher(trained):
    return load_trained(trained)


@pytest.mark.full
def test_levels_are_evenly_spaced_in_log_sigma():
    chain = Chain(make_betas("linear", 1000))
    times = few_levels(chain, 3, first=80.0, last=0.8)
    assert np.exp(np.interp(times, np.arange(1000), chain.log_sigmas)) == pytest.approx(
        [0.8, 8.0, 80.0], rel=1e-6
    )
    assert few_levels(chain, 1, first=80.0, last=0.8) == pytest.approx(times[-1:])
    with pytest.raises(UsageError, match="do not fall"):
        few_levels(chain, 3, first=1e6, last=1e5)


def test_the_config_is_the_teachers_with_fewer_updates(trained):
    teacher = load_trained(trained)
    config = distill_config(teacher, trained, Distillation(steps=3))
    before = teacher.model.config
    assert (config.init_from, config.init_from_step) == (str(trained), teacher.step)
    assert config.distill.evaluations == 3
    most = np.sqrt(1 / teacher.model.schedule.alphas_bar[-1] - 1)  # a chain of 20 steps: 0.48
    assert config.distill.sigma_max == pytest.approx(float(most), rel=5e-3)
    assert config.distill.sigma_last == config.distill.sigma_max / 4
    assert config.train.num_steps == round(0.7 * before.train.num_steps)
    assert config.optimizer.learning_rate == before.optimizer.learning_rate / 2
    assert (config.data, config.model) == (before.data, before.model)


def test_the_teacher_is_measured_with_no_fewer_steps_than_its_student():
    assert teacher_steps(2, 1000) == [2, 4, 8, 16, 50]
    assert teacher_steps(33, 1000) == [50]
    assert teacher_steps(51, 1000) == [51]
    assert teacher_steps(3, 3) == [3]
    assert teacher_steps(20, 3) == [3]  # of consistency tuning, between the steps of a chain


def test_a_student_is_measured_by_powers_of_two_and_its_own_number(trained, teacher):
    for most, steps in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (64, [1, 2, 4, 8, 16, 32, 64])):
        config = distill_config(teacher, trained, Distillation(steps=most))
        methods = student_methods(config, teacher.model.chain)
        assert [method.steps for method in methods] == steps


@pytest.mark.parametrize("method", ["consistency", "progressive"])
def test_what_follows_from_fields_of_the_user_fits_them(trained, teacher, method):
    derived = distill_config(teacher, trained, Distillation(method=method))
    derived.optimizer.warmup_steps = 100
    fields = {"train.num_steps": "60", "distill.sigma_max": "0.1"}
    config = settled(override(derived, fields), teacher, fields)
    assert config.optimizer.warmup_steps == 6
    if method == "consistency":
        assert config.distill.sigma_last == 0.1 / 4
    else:  # 5 of the 20 levels are below, of which two steps are halved from 4
        assert config.distill.rounds == 1
    assert (config.eval.sampler, config.eval.sample_steps) == build(config).method[:2]
    own = fields | {"optimizer.warmup_steps": "30", "distill.sigma_last": "0.2"}
    config = settled(override(derived, own), teacher, own)
    assert (config.optimizer.warmup_steps, config.distill.sigma_last) == (30, 0.2)


def test_an_imported_model_does_not_say_how_long_to_distill_it(trained, teacher):
    imported = dataclasses.replace(teacher, step=0)
    config = distill_config(imported, trained, Distillation())
    with pytest.raises(UsageError, match=r"was not trained here.*--config.train.num_steps="):
        settled(config, imported, {"train.batch_size"})
    assert settled(config, imported, {"train.num_steps"}) == config


def test_files_of_another_project_have_no_step_to_begin_from(tmp_path):
    path = GOLDENS / "checkpoints/diffusers/train_unconditional"
    config = distill_config(load_trained(path), path, Distillation())
    config.data.update(name="digits", data_dir=str(tmp_path))
    beginning, _ = find_beginning(build(config), tmp_path / "run", None)
    assert beginning.record["step"] == 0


def test_fields_of_a_group_leave_the_others_as_the_teacher_has_them(
    trained, teacher, tmp_path, monkeypatch
):
    began = []
    monkeypatch.setattr(
        distilling, "run_training", lambda config, *args, **kw: began.append(config)
    )
    for fields in ({"train": {"num_steps": 5}}, {"train.num_steps": 5}):
        ddpm_jax.distill(trained, tmp_path / "run", fields=fields)
    first, second = began
    assert first == second
    own = teacher.model.config.train.copy_and_resolve_references()
    own.num_steps = 5
    assert first.train == own


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fields": ["a"]}, r"fields is \['a'\]: give a dict"),
        ({"fields": {1: 2}}, "there is no config field '1'"),
        ({"ckpt": Distillation()}, "ckpt is Distillation.*give the path of a directory"),
        ({"workdir": Distillation()}, "workdir is Distillation.*give the path of a directory"),
    ],
)
def test_arguments_of_other_types_are_one_sentence(trained, tmp_path, given, says):
    with pytest.raises(UsageError, match=says):
        ddpm_jax.distill(**{"ckpt": trained, "workdir": tmp_path / "run"} | given)


@pytest.mark.parametrize("method", ["consistency", "progressive"])
def test_learned_levels_are_not_those_that_a_student_is_trained_at(trained, teacher, method):
    config = distill_config(teacher, trained, Distillation(method=method))
    config.diffusion.process = "vdm"
    says = "whose noise levels are learned.* distill a model of another process"
    with pytest.raises(UsageError, match=says):
        build(config)


@pytest.mark.slow
def test_a_distilled_run_is_a_run_with_a_certificate(
    invoke, refused, trained, tmp_path, monkeypatch
):
    out = tmp_path / "two_steps"
    few = ("--config.train.num_steps=6", "--config.distill.sigma_max=0.4")
    invoke("distill", "--ckpt", trained, "--steps", "2", "--out", out, *few)
    config = read_config(out, 6)
    assert config["distill"]["evaluations"] == 2
    certificates = list((out / "evaluation").glob("distillation_*.json"))
    assert len(certificates) == 1
    record = json.loads(certificates[0].read_text())
    assert len(record["levels"]) == 3
    assert set(record["frechet_student"]) == {"1", "2"}
    assert certificates[0].with_suffix(".png").stat().st_size > 5000

    generator = make_generator(load_trained(out), Sampling())
    assert (generator.record["sampler"], generator.record["steps"]) == ("consistency", 2)
    assert generator.sampler.evaluations == 2
    sigmas = np.asarray(generator.sampler.schedule.sigma)
    assert sigmas == pytest.approx([0.474 / 4, 0.4], rel=0.01)
    assert ddpm_jax.load(out).sample(2).shape == (2, 8, 8, 1)

    says = ["This model was distilled", str(trained)]
    for metric in ("bpd", "bpd_ode", "rate_distortion"):
        refused("evaluate", "--ckpt", out, "--metric", metric, says=says)
    # again: the run is there and done, and the certificate is measured once more
    again = invoke("distill", "--ckpt", trained, "--steps", "2", "--out", out, *few)
    assert "distillation" in again.out or "evaluations" in again.out

    other = {"begun_from": {"sha256": "0" * 64}}
    monkeypatch.setattr(teachers, "read_config", lambda *args: other)
    says = ["The teacher of this model", "has changed since"]
    refused("evaluate", "--ckpt", out, "--metric", "distillation", says=says)


@pytest.mark.parametrize("method", ["consistency", "progressive"])
def test_what_only_the_teachers_loss_read_is_left_out(trained, method):
    teacher = load_trained(trained)
    fields = {"loss": "hybrid", "variance": "learned_range", "weighting": "min_snr"}
    fields = {f"diffusion.{name}": value for name, value in fields.items()}
    fields["diffusion.timestep_sampling"] = "antithetic"
    teacher = dataclasses.replace(teacher, model=build(override(teacher.model.config, fields)))
    config = distill_config(teacher, trained, Distillation(steps=2, method=method))
    assert (config.diffusion.loss, config.diffusion.weighting) == ("simple", "uniform")
    assert config.diffusion.timestep_sampling == "uniform"
    build(config)


def test_the_rounds_halve_as_many_steps_as_the_process_has(trained):
    teacher = load_trained(trained)  # a chain of 20 steps
    config = distill_config(teacher, trained, Distillation(steps=2, method="progressive"))
    assert (config.distill.method, config.distill.rounds) == ("progressive", 3)
    assert config.train.num_steps == round(0.6 * teacher.model.config.train.num_steps)
    method = build(config).method
    assert (method.sampler, method.steps) == ("ddim", 2)
    # of 16 levels every eighth, and rounded to steps
    np.testing.assert_array_equal(method.spacing, [9, 19])

    for fields, says in (
        ({"distill.rounds": "4"}, "32 steps"),
        ({"train.num_steps": "2"}, "at least 3"),
    ):
        with pytest.raises(UsageError, match=says):
            build(override(config, fields))

    # a student of few levels is no teacher of many steps
    student = dataclasses.replace(teacher, model=build(config))
    for method in ("progressive", "consistency"):
        with pytest.raises(UsageError, match="takes 2 evaluations already"):
            distill_config(student, trained, Distillation(steps=1, method=method))


@pytest.mark.slow
def test_rounds_resume_to_the_bit_and_end_in_a_certificate(invoke, trained, tmp_path):
    fields = {"train.num_steps": 7, "distill.sigma_max": 0.4, "checkpoint.save_every": 1}
    fields |= {"checkpoint.keep_last": 7}

    def go_on(run):
        result = ddpm_jax.distill(trained, run, steps=2, method="progressive", fields=fields)
        return jax.tree.map(np.asarray, result.state)

    whole = go_on(tmp_path / "whole")
    assert whole.objective_state.number == 2  # 7 updates in 3 rounds: 2, 2, 3
    # stopped before the first update of the last round, and after it
    for step in (4, 5):
        cut = shutil.copytree(tmp_path / "whole", tmp_path / f"cut_{step}")
        for saved in (cut / "checkpoints").iterdir():
            if saved.name.isdigit() and int(saved.name) > step:
                shutil.rmtree(saved)
        jax.tree.map(np.testing.assert_array_equal, go_on(cut), whole)

    argv = ("--steps", 2, "--method", "progressive", "--out", tmp_path / "whole")
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    said = invoke("distill", "--ckpt", trained, *argv, *given)
    assert said.code == 0, said.err
    path = next((tmp_path / "whole" / "evaluation").glob("distillation_*.json"))
    record = json.loads(path.read_text())
    assert list(record["frechet_student"]) == ["2"]
    assert len(record["levels"]["sigma"]) == 2  # those that it visits


@pytest.mark.full
def test_what_cannot_be_distilled_is_one_sentence(refused, trained, tmp_path):
    refused("distill", "--ckpt", trained, says=["--out is missing"])
    refused("distill", "--out", tmp_path / "new", says=["--ckpt is missing"])
    says = ["distillation compares a model of few steps", "was not distilled"]
    refused("evaluate", "--ckpt", trained, "--metric", "distillation", says=says)
