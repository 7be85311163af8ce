"""The fields of the config: what each is declared to be is what the code behind it takes, and what
is refused."""

import math

import jax.numpy as jnp
import pytest

from ddpm_jax.data import layout, sources
from ddpm_jax.diffusion import (
    clipping,
    interpolants,
    level_draws,
    losses,
    parameterization,
    schedules,
    variance,
)
from ddpm_jax.distributed.fsdp import PARALLEL
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import texts
from ddpm_jax.experiments.building import DTYPES
from ddpm_jax.experiments.config import default_config, from_dict, override, own_fields, to_dict
from ddpm_jax.experiments.config_checks import check_config
from ddpm_jax.experiments.config_field import Range, field, list_fields, only
from ddpm_jax.experiments.distill_fields import UNREAD
from ddpm_jax.experiments.fields import FIELDS
from ddpm_jax.experiments.networks import CUSTOM, make_classifier, make_network
from ddpm_jax.experiments.owners import NETWORKS
from ddpm_jax.experiments.run_settings import config_in
from ddpm_jax.models import (
    classifier,
    dit,
    edm_unets,
    layers,
    lora,
    rematerialization,
    text_encoder,
    text_unet,
    trunk,
    unet,
)
from ddpm_jax.samplers import diffusers_levels
from ddpm_jax.training import (
    coupling,
    ema_profiles,
    first_stage_objective,
    objective,
    optimizer,
    step,
)
from ddpm_jax.variational import first_stage, observation

TABLES = {  # field of a name -> where that name is looked up
    "parallel": PARALLEL,
    "data.cache": sources.CACHE_MODES,
    "data.unreadable": sources.UNREADABLE_MODES,
    "data.small": sources.SMALL_MODES,
    "data.layout": layout.LAYOUTS,
    "diffusion.process": {"chain", "vdm", *interpolants.INTERPOLANTS},
    "diffusion.schedule": schedules.BETA_SCHEDULES,
    "diffusion.parameterization": parameterization.PARAMETERIZATIONS,
    "diffusion.variance": variance.VARIANCES,
    "diffusion.clip": clipping.CLIPPINGS,
    "diffusion.loss": losses.LOSSES,
    "diffusion.weighting": losses.WEIGHTINGS,
    "diffusion.levels": level_draws.LEVEL_DISTRIBUTIONS,
    "diffusion.coupling": coupling.COUPLINGS,
    "diffusion.timestep_sampling": objective.TIMESTEP_SAMPLING,
    "model.downsample_padding": layers.DOWNSAMPLE_PADDINGS,
    "model.time_embedding": layers.TIME_EMBEDDINGS,
    "model.dtype": DTYPES,
    "model.remat": rematerialization.REMAT,
    "model.resampling": layers.RESAMPLINGS,
    "model.mid_block": unet.MIDDLES,
    "model.pool": classifier.POOLS,
    "model.qkv_order": trunk.QKV_ORDERS,
    "dit.size": {*dit.SIZES, CUSTOM},
    "dit.positions": dit.POSITIONS,
    "edm_unet.embedding": edm_unets.EMBEDDINGS,
    "edm_unet.encoder": edm_unets.ENCODERS,
    "edm_unet.decoder": edm_unets.DECODERS,
    "text.activation": text_encoder.ACTIVATIONS,
    "text.padding": texts.PADDINGS,
    "text_unet.mid_block": text_unet.MIDDLES,
    "lora.targets": lora.TARGETS,
    "scheduler.spacing": {"", *diffusers_levels.TIMES},
    "scheduler.sigmas": {"", *diffusers_levels.SIGMAS},
    "first_stage.kind": first_stage.KINDS,
    "first_stage.family": observation.FAMILIES,
    "first_stage.scale": first_stage.SCALES,
    "first_stage.codebook": first_stage_objective.CODEBOOKS,
    "optimizer.name": optimizer.OPTIMIZERS,
    "optimizer.decay": optimizer.DECAYS,
    "optimizer.clip_scope": step.CLIP_SCOPES,
}
# names that `experiments` itself looks up, or a layer above it (tests/training/test_evaluations.py)
OF_THE_CONFIG = {
    "objective",
    "model.name",
    "text.kind",
    "eval.metric",
    "distill.method",
    "diffusion.bound",
}
NUMBERS = [spec for spec in FIELDS.values() if {spec.kind, spec.item} & {int, float}]
NAMES = [spec for spec in FIELDS.values() if spec.choices and spec.kind is str]
OWNED = [(spec, owner) for spec in FIELDS.values() for owner in spec.owners]


def named(value):
    return value.name if hasattr(value, "name") else str(value)


def config_with(**values):
    config = default_config()
    for name, value in values.items():
        group, _, leaf = name.rpartition(".")
        (config[group] if group else config)[leaf] = value
    return config


def ends(spec):
    """Numbers at the ends of a field's range and next to them, and whether each lies inside."""
    limits = spec.range
    for end, is_closed, outwards in (
        (limits.at_least, True, -1),
        (limits.above, False, -1),
        (limits.at_most, True, 1),
        (limits.below, False, 1),
    ):
        if end is not None:
            whole = int in (spec.kind, spec.item)
            yield end, is_closed
            yield (end + outwards if whole else math.nextafter(end, outwards * math.inf)), False


@pytest.mark.parametrize("name", TABLES)
def test_the_names_of_a_field_are_those_that_are_looked_up(name):
    assert set(FIELDS[name].choices) == set(TABLES[name])


def test_every_field_of_a_name_that_is_looked_up_has_its_names():
    assert {spec.name for spec in NAMES} == TABLES.keys() | OF_THE_CONFIG


@pytest.mark.parametrize("spec", NUMBERS, ids=named)
def test_every_number_has_a_range_that_its_default_lies_in(spec):
    limits = spec.range
    bounded = limits.at_least is not None or limits.above is not None
    assert bounded or spec.choices or spec.name == "first_stage.log_scale"
    assert spec.kind is float or spec.item is float or spec.choices or limits.at_most is not None
    assert spec.complaint(spec.default) is None


@pytest.mark.parametrize("spec", [spec for spec in NUMBERS if not spec.choices], ids=named)
def test_a_number_is_refused_from_the_end_of_its_range_on(spec):
    for value, is_inside in ends(spec):
        complaint = spec.complaint((value,) if spec.item else value)
        assert (complaint is None) == is_inside, (value, complaint)


@pytest.mark.parametrize("spec", NUMBERS, ids=named)
def test_what_is_refused_names_the_field_and_what_it_must_be(spec):
    bad = (-5.0 if spec.item is float else -5,) if spec.item else spec.kind(-5)
    if not (spec.item or spec.choices) and spec.range.has(bad):
        bad = math.inf
    with pytest.raises(UsageError, match=rf"^{spec.name} is .*-?(5|inf).*: it must be .*\.$"):
        check_config(config_with(**{spec.name: bad}))


@pytest.mark.parametrize("spec", [s for s in NUMBERS if s.kind is float], ids=named)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_is_finite(spec, value):
    assert "finite" in spec.complaint(value)


@pytest.mark.parametrize("spec", NAMES, ids=named)
def test_a_slip_in_a_name_is_refused_and_the_name_suggested(spec):
    for name in spec.choices:
        slip = f"{name}q"
        with pytest.raises(UsageError, match=f"^{spec.name} is '{slip}': choose one of") as error:
            check_config(config_with(**{spec.name: slip}))
        assert name in str(error.value)
        if len(name) > 2:
            assert "Did you mean '" in str(error.value)


@pytest.mark.parametrize(
    ("limits", "value", "wanted"),
    [
        (Range(at_least=1, at_most=9), 0, "at least 1"),
        (Range(at_least=1, at_most=9), 10, "at most 9"),
        (Range(above=0), 0, "above 0"),
        (Range(at_least=0, below=1), 1, "in [0, 1)"),
        (Range(above=0, at_most=1), 0, "in (0, 1]"),
        (Range(above=0, below=0.28867), 1, "in (0, 0.2887)"),
    ],
)
def test_a_range_in_words(limits, value, wanted):
    assert not limits.has(value)
    assert limits.wanted(value) == wanted


def changed(spec):
    """A valid value of a field that is not its default."""
    if spec.choices:
        return next(choice for choice in spec.choices if choice != spec.default)
    if spec.kind is bool:
        return not spec.default
    if spec.kind is str:
        return "somewhere"
    if spec.item:
        return tuple(spec.item(2 if spec.default == (1, 1) else 1) for _ in range(2))
    if spec.optional:
        return 1
    return spec.default + 1 if spec.kind is int else spec.default / 2 + 0.2


def without(owner):
    """Values with which a config is not of the models of an owner."""
    if not owner.values:
        return {owner.field: FIELDS[owner.field].default}
    other = next(name for name in FIELDS[owner.field].choices if name not in owner.values)
    return {owner.field: other}


@pytest.mark.parametrize(("spec", "owner"), OWNED, ids=named)
def test_a_field_is_refused_where_nothing_reads_it(spec, owner):
    values = {spec.name: changed(spec)}
    for other in spec.owners:
        if other != owner:
            field = FIELDS[other.field]
            values[other.field] = other.values[0] if other.values else changed(field)
    with pytest.raises(UsageError, match=r"has none: set it back to|is made of the U-Net's blocks"):
        check_config(config_with(**(values | without(owner))))


@pytest.mark.parametrize(
    ("group", "owner"),
    [
        ("dit", "model.name"),
        *((group, "objective") for group in ("sharp", "diffusion", "condition", "first_stage")),
    ],
)
def test_all_fields_of_a_group_are_of_the_models_it_is_for(group, owner):
    for name, spec in FIELDS.items():
        if name.startswith(f"{group}."):
            assert owner in {of.field for of in spec.owners}, name


def test_what_decides_the_model_or_its_draws_is_not_resumable():
    deciding = ("seed", "objective", "diffusion.", "model.", "dit.", "condition.", "optimizer.")
    resumable = {name for name, spec in FIELDS.items() if spec.resumable}
    assert {name for name in resumable if name.startswith(deciding)} == {"model.remat"}
    assert {name for name in resumable if name.startswith("ema.")} == {"ema.snapshot_every"}
    of_training = {name for name in FIELDS if name.startswith("train.")}
    assert of_training - resumable == {"train.batch_size"}


def test_widths_of_averages_end_where_all_of_the_run_weighs_the_same():
    assert FIELDS["ema.sigma_rel"].range.below == ema_profiles.WIDEST
    assert FIELDS["ema.sigma_rels"].range.below == ema_profiles.WIDEST


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("data.flip", text, True) for text in ("true", "True", "1", "t")),
        *(("data.flip", text, False) for text in ("false", "FALSE", "0")),
        *(("model.ch", text, 64) for text in ("64", "+64", " 64 ", "6_4")),
        *(("optimizer.b1", text, 0.5) for text in ("0.5", ".5", "5e-1")),
        ("optimizer.clip_norm", "1", 1.0),
        *(("model.ch_mult", text, (1, 2)) for text in ("1,2", "(1,2)", "[1, 2]", "1, 2,")),
        *(("model.ch_mult", text, (5,)) for text in ("5", "5,", "(5,)", "5.0")),
        ("model.ch_mult", "1,1.5", (1, 1.5)),
        ("model.attn_resolutions", "()", ()),
        ("ema.decays", "0,0.5", (0.0, 0.5)),
        ("diffusion.beta_start", "None", None),
        ("diffusion.beta_start", "1", 1.0),
        ("init_from_step", "5", 5),
        ("data.name", "None", "None"),
        ("data.data_dir", "", ""),
    ],
)
def test_a_text_becomes_a_value_of_the_fields_type(name, text, value):
    group, _, leaf = name.rpartition(".")
    config = override(default_config(), {name: text})
    made = (config[group] if group else config)[leaf]
    assert repr(made) == repr(value)  # also of the same type


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        *(
            ("model.ch", text, "give a whole number")
            for text in ("", "wide", "1.5", "None", "0x10")
        ),
        *(("optimizer.b1", text, "give a finite number") for text in ("", "fast", "nan", "inf")),
        *(("data.flip", text, "give true or false") for text in ("", "maybe", "no", "2")),
        *(("model.ch_mult", text, r"separated by commas\.") for text in ("", "1,x", "1,,2")),
        *(("model.attn_resolutions", text, r"or \(\) for none") for text in ("", "none")),
        ("init_from_step", "1.5", "give a whole number"),
    ],
)
def test_a_text_of_another_type_is_refused(name, text, wanted):
    with pytest.raises(UsageError, match=rf"config field '{name}' is of type .*{wanted}"):
        override(default_config(), {name: text})


def test_a_group_says_what_holds_for_all_its_fields():
    class Group:
        OF = only("model.name", "dit")
        RESUMABLE = True
        depth = field(12, "blocks", Range(at_least=1))
        size = field("S", "letter", resumable=False)

    depth, size = list_fields("dit.", Group)
    assert (depth.name, depth.kind, depth.range.at_most) == ("dit.depth", int, 2**31 - 1)
    assert (depth.resumable, size.resumable) == (True, False)
    assert depth.owners == size.owners == Group.OF


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("first_stage.ckpt", "runs/vae", "8-bit pixels"), ("objective", "classifier", "a classifier")],
)
def test_levels_are_learned_with_a_network_that_denoises_pixels(field, value, words):
    config = config_with(**{"diffusion.process": "vdm", field: value})
    config.condition.num_classes = 10 if value == "classifier" else 0
    with pytest.raises(UsageError, match=f"levels are learned.*{words}"):
        check_config(config)


TEACHER = {  # of the processes that have them, and away from their defaults
    "loss": "vlb",
    "weighting": "min_snr",
    "timestep_sampling": "antithetic",
    "levels": "mode",
    "level_mean": -0.4,
    "level_std": 1.0,
    "mode_scale": 1.0,
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_no_distillation_reads_is_refused_in_one(name):
    process = "chain" if name == "loss" else "flow"
    levels = {"level_mean": "lognormal", "level_std": "lognormal", "mode_scale": "mode"}
    fields = {"process": process, "levels": levels.get(name, "uniform"), name: TEACHER[name]}
    fields = {f"diffusion.{field}": value for field, value in fields.items()}
    check_config(config_with(**fields))
    student = config_with(**fields, **{"init_from": "run", "distill.evaluations": 2})
    with pytest.raises(UsageError, match=r"a distillation .* of its own: set it back to"):
        check_config(student)
    # a run of before, with all that its teacher had
    kept = from_dict(config_in(to_dict(student)), source="a run of before")
    check_config(kept)
    assert kept.diffusion.process == process


@pytest.mark.parametrize("name", ["weighting", "timestep_sampling"])
def test_what_a_mean_flow_does_not_read_is_refused_in_one(name):
    """The third, the loss, is refused of every flow."""
    flow = {"diffusion.process": "flow", "diffusion.parameterization": "velocity"}
    fields = flow | {f"diffusion.{name}": TEACHER[name]}
    check_config(config_with(**fields))
    with pytest.raises(UsageError, match=r"a mean flow has a loss of its own, .*: set it back to"):
        check_config(config_with(**fields, **{"mean_flow.evaluations": 1}))


OTHER_VALUES = {  # of fields of the network, away from their defaults and fit for each other
    "ch": 64,
    "ch_mult": (1, 1, 2, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "num_heads": 2,
    "num_heads_up": 4,
    "scale_shift_norm": True,
    "downsample_padding": "both",
    "resampling": "pool",
    "block_down": (0,),
    "block_up": (1,),
    "mid_block": "none",
    "dropout": 0.3,
    "time_embedding": "cos_sin_inclusive",
    "fourier_features": (2,),
    "time_channels": 32,
    "norm_eps": 1e-3,
    "norm_groups": 16,
    "remat": "blocks",
    "pool": "attention",
}


@pytest.mark.parametrize("name", [*NETWORKS, "classifier"])
def test_a_network_has_what_the_config_says_that_it_has(name):
    """A field that the table gives to a network reaches it, and no other is refused by it."""
    is_classifier = name == "classifier"
    config = config_with(**{"model.name": "unet" if is_classifier else name})
    config.objective = "classifier" if is_classifier else "diffusion"
    config.condition.num_classes = 3
    fields = {n: OTHER_VALUES[n] for n in own_fields(config, "model") if n in OTHER_VALUES}
    config.model.update(fields)
    if is_classifier:
        network = make_classifier(config, 16, jnp.float32)
    else:
        network = make_network(config, (16, 16, 3), jnp.float32)
    assert {name: getattr(network, name) for name in fields} == fields
    assert len(fields) >= 3
