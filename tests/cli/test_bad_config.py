"""Configs that cannot work: one sentence, before a parameter is drawn and before the workdir is
touched."""

import pathlib

import jax
import pytest

from ddpm_jax.cli import synonyms, train
from ddpm_jax.experiments import config as configs

NAMES = [  # field, a slip, the name that was meant
    ("diffusion.schedule", "linar", "linear"),
    ("diffusion.parameterization", "epps", "eps"),
    ("diffusion.variance", "fixed_larg", "fixed_large"),
    ("diffusion.loss", "simpel", "simple"),
    ("diffusion.weighting", "minsnr", "min_snr"),
    ("diffusion.timestep_sampling", "antithetical", "antithetic"),
    ("model.dtype", "bfloat61", "bfloat16"),
    ("optimizer.name", "adm", "adam"),
    ("optimizer.decay", "cosin", "cosine"),
    ("optimizer.clip_scope", "replicas", "replica"),
    ("parallel", "fspd", "fsdp"),
    ("data.name", "digit", "digits"),
    ("data.name", "cifar1", "cifar10"),
    ("data.cache", "alway", "always"),
    ("data.unreadable", "skp", "skip"),
    ("data.train_split", "trian", "train"),
]
AT_LEAST_ONE = [
    "data.image_size",
    "model.ch",
    "model.num_res_blocks",
    "model.num_heads",
    "dit.hidden_size",
    "dit.depth",
    "dit.num_heads",
    "dit.patch_size",
    "optimizer.accumulate_steps",
    "train.num_steps",
    "train.batch_size",
    "train.log_every",
    "train.num_samples",
    "train.sample_steps",
    "train.steps_per_call",
    "checkpoint.save_every",
    "checkpoint.keep_last",
    "first_stage.latent_channels",
    "sharp.discriminator_ch",
    "sharp.discriminator_layers",
]
AT_LEAST_ZERO = [
    "first_stage.latent_scale",
    "first_stage.beta",
    "first_stage.kl_warmup_steps",
    "first_stage.free_nats",
    "first_stage.commitment",
    "first_stage.restart_below",
    "sharp.perceptual_weight",
    "sharp.adversarial_weight",
    "sharp.start_step",
    "condition.num_classes",
    "condition.low_res_factor",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "train.sample_every",
    "train.skip_nonfinite",
    "ema.snapshot_every",
]
BELOW_ONE = [
    "model.dropout",
    "condition.label_dropout",
    "data.holdout",
    "ema.decay",
    "ema.rampup_ratio",
    "first_stage.codebook_decay",
    "sharp.discriminator_b1",
    "sharp.discriminator_b2",
    "optimizer.b1",
    "optimizer.b2",
]
RANGES = [
    *((field, bad, "at least 1") for field in AT_LEAST_ONE for bad in (0, -3)),
    *((field, -1, "at least 0") for field in [*AT_LEAST_ZERO, "checkpoint.keep_every"]),
    *((field, bad, "in [0, 1)") for field in BELOW_ONE for bad in (-0.5, 1)),
    *(
        (field, bad, "above 0")
        for field in (
            "model.norm_eps",
            "optimizer.learning_rate",
            "optimizer.eps",
            "sharp.discriminator_learning_rate",
        )
        for bad in (0, -1)
    ),
    *(
        (field, bad, "finite")
        for field in ("optimizer.learning_rate", "optimizer.clip_norm")
        for bad in ("nan", "inf")
    ),
    ("first_stage.num_codes", 1, "at least 2"),
    ("first_stage.log_scale", "nan", "finite"),
    ("diffusion.num_timesteps", 1, "at least 2"),
    ("diffusion.num_timesteps", -5, "at least 2"),
    ("ema.sigma_rel", -0.1, "0 or more and below 0.2887"),
    ("ema.sigma_rel", 0.3, "0 or more and below 0.2887"),
    ("diffusion.beta_start", -0.1, "(0, 1]"),
    ("diffusion.beta_end", 0, "(0, 1]"),
    ("data.channels", 2, "1 or 3"),
    ("seed", -1, "0..4294967295"),
    ("seed", 2**32, "0..4294967295"),
    ("model.ch_mult", "0,1", "whole numbers of at least 1"),
    ("model.ch_mult", "1,x", "whole numbers of at least 1"),
]
TOO_LARGE = [  # each would be traced, or its memory asked for, before anything else is said of it
    ("data.image_size", 10**9, "at most 8192"),
    ("diffusion.num_timesteps", 10**12, "at most 1000000"),
    ("model.num_res_blocks", 1000, "at most 16"),
    ("model.ch_mult", ",".join("1" * 62), "at most 12 numbers"),
    ("dit.depth", 1_000_000, "at most 128"),
    ("train.batch_size", 10**12, "at most 1048576"),
    ("train.num_steps", 10**20, "at most 2147483647"),
    ("optimizer.warmup_steps", 2**31, "at most 2147483647"),
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
    (["diffusion.schedule=jsd"], ["alphas_bar = 0", "predict x_0 or v"]),
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
    monkeypatch.setattr(train, "init_state", lambda *args: pytest.fail("parameters were drawn"))

    def check(*argv, says):
        refused("train", "--config", config_file(), "--workdir", workdir, *argv, says=says)
        assert not workdir.exists()

    return check


def set_fields(*assignments):
    return [f"--config.{assignment}" for assignment in assignments]


@pytest.mark.parametrize(("field", "slip", "meant"), NAMES)
def test_an_unknown_name_is_refused_and_the_nearest_suggested(
    refused_untouched, field, slip, meant
):
    refused_untouched(
        *set_fields(f"{field}={slip}"),
        says=[f"'{slip}'", meant, "" if "split" in field else "Did you mean"],
    )


@pytest.mark.parametrize(("field", "value", "wanted"), RANGES + TOO_LARGE)
def test_a_number_outside_its_range_is_refused(refused_untouched, field, value, wanted):
    refused_untouched(
        *set_fields(f"{field}={value}"), says=[field.rpartition(".")[2] + " is ", wanted]
    )


def test_every_number_of_the_config_has_a_range():
    """A field that is added without one fails here. The rest are names, paths, switches and
    tuples."""
    numbers = {
        name
        for name, value in configs.flatten(configs.default_config())
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert numbers <= {field for field, _, _ in RANGES}


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
        ("--config.data.flip", ["--config.data.flip has no value", "--config.data.flip=VALUE"]),
    ],
)
def test_a_bad_override_is_named_with_the_nearest_field_or_the_type(
    refused_untouched, argument, says
):
    refused_untouched(argument, says=says)


def test_an_override_does_not_swallow_the_flag_behind_it(refused_untouched):
    refused_untouched(
        "--config.data.flip", "--platform", "cpu", says=["--config.data.flip has no value"]
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
    assert set(synonyms.FIELDS) <= set(fields)
    others = [other for names in synonyms.FIELDS.values() for other in names.split()]
    assert len(others) == len(set(others))
    own = {field.rpartition(".")[2] for field in fields}
    assert not own & set(others), "a field's own name needs no synonym"
