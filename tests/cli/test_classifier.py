"""A classifier is trained by the same command; it makes no images, and guides only the model it was
trained for."""

import dataclasses
import json

import numpy as np
import pytest

from ddpm_jax.cli import command
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.guides import load_classifier
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.run_settings import config_in

from .conftest import find_main, write_config

OVERRIDES = ["--config.objective=classifier", "--config.condition.num_classes=10"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, data_dir):
    """The directory of a classifier of four steps."""
    directory = tmp_path_factory.mktemp("classifier")
    config = write_config(directory / "mine.py", data_dir=data_dir, num_steps=4)
    assert (
        command.run(
            find_main("train"),
            ["--config", str(config), "--workdir", str(directory / "run"), *OVERRIDES],
        )
        == 0
    )
    return directory / "run"


@pytest.mark.full
def test_a_run_leaves_its_records_and_checkpoint_and_no_samples(classifier):
    records = [json.loads(line) for line in (classifier / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    assert all(0 <= record["accuracy"] <= 1 for record in records)
    assert abs(records[0]["loss"] - np.log(10)) < 0.3, "a new network knows nothing"
    assert (classifier / "loss.png").exists()
    assert (classifier / "checkpoints" / "4").is_dir()
    assert not (classifier / "samples").exists()


@pytest.mark.full
def test_the_same_command_resumes_and_names_no_samples(invoke, classifier, config_file):
    result = invoke("train", "--config", config_file(4), "--workdir", classifier, *OVERRIDES)
    assert result.code == 0
    assert "resuming at step 4" in result.err
    assert "samples" not in result.out
    assert "sample.py" not in result.out


@pytest.mark.full
@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_images_of_a_classifier_are_refused(refused, classifier, name):
    refused(
        name,
        "--ckpt",
        classifier,
        says=[f"{classifier} holds a classifier and not a diffusion model"],
    )


@pytest.mark.full
def test_a_classifier_guides_the_model_it_was_trained_for_and_no_other(classifier, trained):
    model = load_trained(trained)
    guided, loaded = model.model, load_classifier(classifier, model)
    x_t, t = np.zeros((2, 8, 8, 1), np.float32), np.array([0, 19])
    log_prob = loaded.model.class_log_prob(loaded.weights)
    logits = loaded.model.network.apply({"params": loaded.params}, x_t, t)
    expected = [
        row[label] - np.log(np.exp(row).sum())
        for row, label in zip(np.float64(logits), (3, 7), strict=True)
    ]
    np.testing.assert_allclose(
        log_prob(guided.schedule, x_t, t, np.array([3, 7])), expected, rtol=1e-5
    )

    with pytest.raises(UsageError, match="holds a diffusion model and not a classifier"):
        load_classifier(trained, model)
    for override, words in (
        ("data.image_size=16", "reads images of 8x8x1, but the model makes images of 16x16x1"),
        ("diffusion.schedule=cosine", "another schedule"),
        ("diffusion.num_timesteps=30", "another schedule"),
        ("diffusion.rescale_timesteps=true", "another schedule"),
    ):
        other = configs.override(guided.config, dict([override.split("=")]))
        with pytest.raises(UsageError, match=words):
            load_classifier(classifier, dataclasses.replace(model, model=build(other)))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["objective=clasifier"], ["objective is 'clasifier'", "Did you mean 'classifier'"]),
        (["objective=classifier"], ["condition.num_classes is 0", "tells classes apart"]),
        (
            ["objective=classifier", "condition.num_classes=10", "diffusion.loss=vlb"],
            ["diffusion.loss is 'vlb'", "classifier has none", "'simple'"],
        ),
        (
            ["objective=classifier", "condition.num_classes=10", "condition.label_dropout=0.1"],
            ["condition.label_dropout is 0.1", "classifier has none"],
        ),
        (
            ["objective=classifier", "condition.num_classes=7"],
            ["has 10 classes", "condition.num_classes is 7"],
        ),
        (
            [
                "objective=classifier",
                "condition.num_classes=10",
                "diffusion.timestep_sampling=importance",
            ],
            ["timestep sampling of a classifier 'importance'"],
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused(refused, config_file, tmp_path, overrides, says):
    arguments = [f"--config.{override}" for override in overrides]
    refused(
        "train", "--config", config_file(), "--workdir", tmp_path / "run", *arguments, says=says
    )
    assert not (tmp_path / "run").exists()


def test_a_config_from_before_the_field_existed_is_that_of_a_diffusion_model(trained):
    saved = json.loads((trained / "config.json").read_text())
    del saved["objective"]
    assert configs.from_dict(config_in(saved), source="old").objective == "diffusion"
    config = configs.from_dict(
        config_in(json.loads((trained / "config.json").read_text())), source="new"
    )
    assert configs.differences(configs.to_dict(config), config_in(saved)) == []
