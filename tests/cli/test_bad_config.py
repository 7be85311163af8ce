"""Configs that cannot work: one sentence, before a parameter is drawn and before the workdir is
touched."""

import pathlib

import jax
import pytest

from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments import field_synonyms
from ddpm_jax.training_runs import start

# Of each kind of field one: `experiments/test_fields.py` has them all.
ALONE = [  # override, words of the sentence
    ("diffusion.schedule=linar", ["diffusion.schedule is 'linar'", "Did you mean 'linear'?"]),
    ("objective=difusion", ["objective is 'difusion'", "Did you mean 'diffusion'?"]),
    ("data.name=digit", ["'digit'", "Did you mean 'digits'?"]),
    ("data.name=cifar1", ["'cifar1'", "Did you mean 'cifar10'?"]),
    ("data.train_split=trian", ["'trian'", "train"]),
    ("train.batch_size=0", ["train.batch_size is 0: it must be at least 1."]),
    ("optimizer.warmup_steps=-3", ["optimizer.warmup_steps is -3: it must be at least 0."]),
    ("optimizer.learning_rate=0", ["optimizer.learning_rate is 0.0: it must be above 0."]),
    ("optimizer.learning_rate=nan", ["cannot be 'nan'", "give a finite number"]),
    ("model.dropout=1", ["model.dropout is 1.0: it must be in [0, 1)."]),
    ("ema.sigma_rel=0.3", ["ema.sigma_rel is 0.3: it must be in [0, 0.2887)."]),
    ("diffusion.beta_end=0", ["diffusion.beta_end is 0.0: it must be in (0, 1]."]),
    ("data.channels=2", ["data.channels is 2: it must be 1 or 3."]),
    ("diffusion.shift=1e-30", ["diffusion.shift is 1e-30: it must be at least 0.001."]),
    ("diffusion.sigma_max=1e300", ["sigma_max is 1e+300: it must be at most 100000000."]),
    ("diffusion.sigma_min=1e-160", ["sigma_min is 1e-160: it must be at least 1e-07."]),
    ("model.ch_mult=0,1", ["it must be numbers in (0, 1024]."]),
    ("model.ch_mult=1,x", ["'1,x'", "give numbers separated by commas"]),
    ("ema.decays=0.5,1.5", ["(0.5, 1.5): it must be numbers in [0, 1)."]),
    # each would be traced, or its memory asked for, before anything else is said of it
    ("data.image_size=1000000000", ["at most 8192"]),
    (f"model.ch_mult={','.join('1' * 62)}", ["at most 12 numbers"]),
    (f"train.num_steps={10**20}", ["at most 2147483647"]),
    (f"seed={2**32}", ["at most 4294967295"]),
]
# overrides that contradict each other or the digits' config, and words of the sentence
TOGETHER = [
    (["data.image_size=9", "model.ch_mult=1,2"], ["9 is not divisible by 2", "multiple of 2"]),
    (
        ["model.num_res_blocks=16", "model.ch_mult=1,1,1,1,1"],
        ["16 on each of the 5 levels", "at most 64 blocks"],
    ),
    (["model.ch=33"], ["33 channels", "32 groups", "multiple of 32"]),
    (["model.num_heads=3"], ["num_heads 3", "divisor of 32"]),
    (["model.attn_resolutions=5,"], ["attn_resolutions names 5", "at 8"]),
    (["diffusion.loss=hybrid"], ["hybrid", "fixed_large", "learn it, or use simple"]),
    (["diffusion.variance=learned"], ["simple", "learned", "use hybrid or vlb"]),
    (["diffusion.schedule=jsd"], ["alphas_bar = 0", "x_0, v, edm or velocity", "by sigma_max"]),
    (
        ["diffusion.zero_terminal_snr=true"],
        ["alphas_bar = 0", "x_0, v, edm or velocity", "by sigma_max"],
    ),
    (
        ["diffusion.process=edm", "diffusion.schedule=cosine"],
        ["diffusion.schedule is 'cosine'", "the process of EDM has none"],
    ),
    (["diffusion.shift=3"], ["diffusion.shift is 3.0", "a chain of T steps has none"]),
    (["diffusion.sigma_data=1"], ["sigma_data is 1.0", "a network that predicts eps has none"]),
    (
        ["diffusion.process=flow", "diffusion.level_std=2"],
        ["level_std is 2.0", "a uniform distribution of levels has none"],
    ),
    (["diffusion.process=flow"], ["alphas_bar = 0", "x_0, v, edm or velocity", "by sigma_max"]),
    (
        ["diffusion.process=edm", "diffusion.parameterization=mu"],
        ["continuous time has no steps", "no mu", "fixed variance"],
    ),
    (["diffusion.process=edm", "diffusion.loss=vlb"], ["loss is 'vlb'", "set it to 'simple'"]),
    (
        ["diffusion.process=vp", "diffusion.timestep_sampling=importance"],
        ["timestep_sampling is 'importance'", "of the T steps of a chain", "'uniform'"],
    ),
    (
        ["diffusion.process=vdm", "diffusion.weighting=p2"],
        ["weighting is 'p2'", "a process whose levels are learned", "'uniform'"],
    ),
    (
        ["diffusion.process=vdm", "diffusion.levels=lognormal"],
        ["levels is 'lognormal'", "a process whose levels are learned", "'uniform'"],
    ),
    (
        ["diffusion.process=vdm", "diffusion.sigma_min=20"],
        ["noise levels run from sigma 20 to 12.18 (the process's own)", "below the second"],
    ),
    (
        ["diffusion.process=vdm", "diffusion.sigma_min=1", "diffusion.sigma_max=1.0002"],
        ["noise levels run from sigma 1 to 1.0002", "1.001 times the first"],
    ),
    (["diffusion.bound=discrete"], ["bound is 'discrete'", "a chain of T steps has none"]),
    (
        ["diffusion.process=edm", "diffusion.sigma_min=90"],
        ["noise levels run from sigma 90 to 80 (the process's own)", "below the second"],
    ),
    (
        ["diffusion.process=flow", "diffusion.sigma_max=1e-5"],
        ["from sigma 0.05263 (the process's own) to 1e-05", "below the second"],
    ),
    (
        ["diffusion.schedule=cosine", "diffusion.beta_start=0.1"],
        ["cosine", "beta_start", "leave it unset"],
    ),
    (
        ["diffusion.schedule=cosine", "diffusion.scale_betas=true"],
        ["cosine", "leave scale_betas false"],
    ),
    (["optimizer.weight_decay=0.1"], ["0.1", "choose adamw"]),
    (
        ["model.name=edm2_unet", "optimizer.name=adamw", "optimizer.weight_decay=0.1"],
        ["optimizer.weight_decay is 0.1", "normalised after every update", "set it to 0"],
    ),
    (
        ["optimizer.decay=cosine", "optimizer.warmup_steps=50"],
        ["warmup_steps (50)", "num_steps (10)"],
    ),
    (["train.sample_steps=21"], ["train.sample_steps is 21", "choose 1 to 20"]),
    (["diffusion.num_timesteps=10"], ["train.sample_steps is 20", "choose 1 to 10"]),
    (
        ["condition.label_dropout=0.1"],
        ["label_dropout is 0.1", "no labels to hide", "set condition.num_classes"],
    ),
    (
        ["condition.num_classes=7"],
        ["'digits' has 10 classes", "num_classes is 7", "condition.num_classes=10"],
    ),
    (["condition.low_res_factor=1"], ["low_res_factor is 1", "0 or 2 and more"]),
    (["condition.low_res_factor=3"], ["low_res_factor is 3", "does not divide data.image_size 8"]),
    (["optimizer.accumulate_steps=3"], ["train.batch_size is 8", "3 parts", "use 6"]),
]


@pytest.fixture
def refused_untouched(refused, config_file, tmp_path, monkeypatch):
    """refused_untouched(*argv, says=...): train.py with the digits' config refuses before it
    computes or writes."""
    workdir = tmp_path / "run"
    monkeypatch.setattr(start, "init_state", lambda *args: pytest.fail("parameters were drawn"))

    def check(*argv, says):
        refused("train", "--config", config_file(), "--workdir", workdir, *argv, says=says)
        assert not workdir.exists()

    return check


def set_fields(*assignments):
    return [f"--config.{assignment}" for assignment in assignments]


@pytest.mark.parametrize(("change", "says"), ALONE)
def test_a_value_that_a_field_cannot_have_is_refused(refused_untouched, change, says):
    refused_untouched(*set_fields(change), says=says)


@pytest.mark.parametrize(("overrides", "says"), TOGETHER)
def test_values_that_do_not_go_together_are_refused(refused_untouched, overrides, says):
    refused_untouched(*set_fields(*overrides), says=says)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--config.model.chan=64", ["'model.chan'", "Did you mean 'model.ch'?"]),
        ("--config.modle.ch=64", ["'modle.ch'", "Did you mean 'model.ch'?"]),
        ("--config.batch_size=64", ["'batch_size'", "Did you mean 'train.batch_size'?"]),
        (
            "--config.model.batch_size=64",
            ["'model.batch_size'", "Did you mean 'train.batch_size'?"],
        ),
        ("--config.xyz=1", ["'xyz'", "The groups are checkpoint, condition, data"]),
        ("--config.model=64", ["'model' is a group", "model.ch,"]),
        ("--config.model.ch=wide", ["'model.ch'", "type int", "'wide'"]),
        ("--config.model.ch=1.5", ["'model.ch'", "type int", "'1.5'"]),
        ("--config.data.flip=maybe", ["'data.flip'", "type bool", "'maybe'"]),
        ("--config.data.flip=no", ["'data.flip'", "cannot be 'no'", "give true or false"]),
        (
            "--config.optimizer.lr=1e-4",
            ["'optimizer.lr'", "Did you mean 'optimizer.learning_rate'?"],
        ),
        ("--config.train.bs=64", ["'train.bs'", "Did you mean 'train.batch_size'?"]),
        ("--config.resolution=64", ["'resolution'", "Did you mean 'data.image_size'?"]),
        ("--config.diffusion.timesteps=100", ["Did you mean 'diffusion.num_timesteps'?"]),
        ("--config.model.ema_decay=0.99", ["Did you mean 'ema.decay'?"]),
        ("--config.train.epochs=3", ["Did you mean 'train.num_steps'?"]),
        (
            "--config.optimizer.learning_rate=fast",
            ["'optimizer.learning_rate'", "type float", "'fast'"],
        ),
        ("--config.data.flip", ["--config.data.flip: expected one argument"]),
    ],
)
def test_a_bad_override_is_named_with_the_nearest_field_or_the_type(
    refused_untouched, argument, says
):
    refused_untouched(argument, says=says)


def test_an_override_does_not_swallow_the_flag_behind_it(refused_untouched):
    refused_untouched(
        "--config.data.flip",
        "--platform",
        "cpu",
        says=["--config.data.flip: expected one argument"],
    )


def test_a_batch_that_eight_devices_cannot_share_is_refused(refused_untouched, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    refused_untouched(
        *set_fields("train.batch_size=60"), says=["train.batch_size is 60", "8 devices", "use 56"]
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(:\n", ["SyntaxError"]),
        ("import no_such_module\n", ["ModuleNotFoundError", "no_such_module"]),
        ("def get_config():\n    return 1 / 0\n", ["ZeroDivisionError"]),
        ("raise SystemExit(3)\n", ["SystemExit: 3"]),
        ("x = 1\n", ["no attribute 'get_config'"]),
        ("def get_config():\n    pass\n", ["returns None", "must return a ConfigDict or a dict"]),
        (
            "def get_config():\n    return {'model': {'chan': 1}}\n",
            ["'model.chan'", "Did you mean 'model.ch'?"],
        ),
        ("def get_config():\n    return {'model': 1}\n", ["'model' is a group"]),
        (
            "def get_config():\n    return {'model': {'ch': 'x'}}\n",
            ["'model.ch'", "type int", "'x'"],
        ),
    ],
)
def test_a_config_file_that_fails_is_named_with_the_reason(refused, tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    refused("train", "--config", path, "--workdir", tmp_path / "run", says=[str(path), *says])
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_is_missing_is_refused_and_the_nearest_suggested(
    refused, config_file, tmp_path
):
    config_file()
    refused(
        "train",
        "--config",
        tmp_path / "mien.py",
        says=["mien.py", f"Did you mean '{tmp_path / 'mine.py'}'?"],
    )
    refused(
        "train",
        "--config",
        "digts",
        says=["no config file digts", "Did you mean 'digits'?", "ddpm_cifar10"],
    )
    refused(
        "train",
        "--config",
        "nowhere/mine.py",
        says=["no config file nowhere/mine.py", "Paths start from"],
    )
    (tmp_path / "mine.txt").write_text("text")
    refused("train", "--config", tmp_path / "mine.txt", says=["mine.txt is not a Python file"])


def test_a_config_is_found_by_its_bare_name(tmp_path, monkeypatch):
    ours = pathlib.Path(__file__).parents[2] / "configs" / "digits.py"
    for name in ("digits", "digits.py"):
        assert configs.config_file(name).resolve() == ours
    monkeypatch.chdir(tmp_path)
    assert configs.config_file("digits").resolve() == ours, "also from another directory"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text("")
    assert configs.config_file("digits").resolve() == tmp_path / "configs" / "digits.py", (
        "one's own come first"
    )
    for name in ("other/digits", "digits.yaml", "nothing"):
        assert not configs.config_file(name).exists()


def test_every_synonym_is_of_one_field():
    fields = dict(configs.flatten(configs.default_config()))
    assert set(field_synonyms.SYNONYMS) <= set(fields)
    others = [other for names in field_synonyms.SYNONYMS.values() for other in names.split()]
    assert len(others) == len(set(others))
    own = {field.rpartition(".")[2] for field in fields}
    assert not own & set(others), "a field's own name needs no synonym"
