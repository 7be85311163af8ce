"""Every JSON that is read may be anybody's: whatever stands there, one sentence names the file and
what is wrong."""

import json

import numpy as np
import pytest

from ddpm_jax.checkpoints import digests, reader
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.evaluation.tally import Tally, empty
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.run_settings import FIRST_STAGE, model_from_settings, read_settings
from ddpm_jax.generation.shards import read_shards
from ddpm_jax.monitoring import records, results


def settings(path):
    read_settings(path)


def manifest(path):
    path.rename(path.with_name("manifest.json"))
    read_shards(path.parent)


def record(path):
    results.check_record(path, {"seed": 0})


def tally(path):
    np.savez(path.with_suffix(".npz"), settings=np.array(path.read_text()), **empty(4, 1)._asdict())
    assert set(Tally._fields) <= set(np.load(path.with_suffix(".npz")).files)
    results.load_tally(path.with_suffix(".npz"), {"seed": 0}, empty(4, 1))


def checkpoint(path):
    step = path.parent / "checkpoints" / "5"
    for item in reader.ITEMS:
        (step / item).mkdir(parents=True)
    path.rename(step / reader.CONFIG / "metadata")
    digests.write(step / reader.CONFIG)
    model_from_settings(reader.read_config(path.parent, 5), source="the config")


@pytest.mark.parametrize("read", [settings, manifest, record, tally, checkpoint])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "1.5",
        "true",
        "{",
        '{"seed": NaN}',
        '{"seed": 1e999}',
        '{"seed": %s}' % ("9" * 60),
        "[" * 200_000,
    ],
    ids=lambda text: text[:12] or "empty",
)
def test_what_is_no_object_of_plain_data_is_one_sentence(tmp_path, read, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises((UsageError, FailureError), match=str(tmp_path)) as caught:
        read(tmp_path / "file.json")
    assert "damaged" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"seed": None}, "'seed' is of type int and cannot be None"),
        ({"seed": True}, "'seed' is of type int and cannot be True"),
        ({"optimizer": {"b1": None}}, "'optimizer.b1' is of type float and cannot be None"),
        ({"optimizer": {"b1": []}}, "'optimizer.b1' is of type float"),
        ({"data": {"flip": 1}}, "'data.flip' is of type bool"),
        ({"data": {"name": None}}, "'data.name' is of type str"),
        ({"data": []}, "'data' is a group"),
        ({"model": {"ch_mult": [None]}}, "'model.ch_mult' is of type tuple"),
        ({"model": {"ch_mult": [True]}}, "'model.ch_mult' is of type tuple"),
        ({"model": {"ch_mult": 3}}, "'model.ch_mult' is of type tuple"),
        ({"model": {"ch_mult": [1] * 62}}, "model.ch_mult is .* at most 12 numbers"),
        (
            {"train": {"num_steps": 2**31}},
            "train.num_steps is 2147483648: it must be at most 2147483647",
        ),
        ({FIRST_STAGE: []}, "the config, its frozen_first_stage is"),
        ({FIRST_STAGE: {"config": {}, "sha256": "abc"}}, "its frozen_first_stage.sha256 is 'abc'"),
        (
            {FIRST_STAGE: {"config": {"seed": None}, "sha256": "0" * 64}},
            "of its first stage: config field 'seed'",
        ),
    ],
)
def test_a_value_of_a_saved_config_that_is_not_of_its_field_is_one_sentence(values, says):
    with pytest.raises(UsageError, match=says):
        model_from_settings(values, source="the config")


def test_values_that_json_and_older_versions_have_are_taken():
    config = configs.from_dict(
        {
            "optimizer": {"learning_rate": 1},
            "diffusion": {"beta_start": None},
            "model": {"remat": True, "ch_mult": [1, 2]},
        },
        source="the config",
    )
    assert (config.optimizer.learning_rate, config.model.remat, config.model.ch_mult) == (
        1.0,
        "blocks",
        (1, 2),
    )
    assert config.diffusion.beta_start is None


def test_lines_that_are_no_records_are_left_out(tmp_path):
    good = {"step": 2, "loss": 0.5, "grad_norm": None}
    bad = [
        "null",
        "[]",
        '{"step": null}',
        '{"step": 3, "loss": []}',
        '{"step": 4, "loss": "low"}',
        '{"step": %s}' % ("9" * 60),
    ]
    bad += ["[" * 200_000, '{"step": 5, "loss": Infinity}', '{"step": 1e999}', '{"step": true}']
    lines = [*bad, json.dumps(good), '{"step": 6, "lo']
    (tmp_path / records.RECORDS).write_text("\n".join(lines))
    (found,) = records.read(tmp_path)
    assert (found["step"], found["loss"], np.isnan(found["grad_norm"])) == (2, 0.5, True)
