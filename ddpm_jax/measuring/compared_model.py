"""A trained model on which samplers are compared, and the images to compare with."""

import dataclasses
import time
from typing import Any

import numpy as np

from ddpm_jax.data.dataset_info import holds_out
from ddpm_jax.data.in_memory import in_memory
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.evaluation.pixel_frechet import check_pixel_sets, pixel_frechet_distance
from ddpm_jax.experiments.datasets import load_evaluated, load_split
from ddpm_jax.experiments.identity import checkpoint_record
from ddpm_jax.experiments.programs import Programs
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.limits import MAX_BATCH, MAX_IMAGES
from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.loop import Sampler
from ddpm_jax.settings import Settings, setting
from ddpm_jax.tasks.image_generator import ImageGenerator
from ddpm_jax.tasks.sampling import generator_with
from ddpm_jax.tasks.sampling_settings import Conditions


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelComparison(Settings):
    """How samplers are compared on a trained model."""

    num_samples: int = setting(
        300,
        "Images of the model for each sampler and number of evaluations.",
        lower=2,
        upper=MAX_IMAGES,
    )
    num_reference: int | None = setting(
        None,
        "Compare with only so many of the training images, spread evenly over them; all by "
        "default.",
        lower=2,
        upper=MAX_IMAGES,
    )
    batch_size: int = setting(
        300, "Images made at a time, over all devices.", lower=1, upper=MAX_BATCH
    )
    data_dir: str | None = setting(
        None,
        "Where the data is, if not where the training run found it.",
        path=True,
        metavar="DIR",
    )
    conditions: Conditions = dataclasses.field(default=Conditions())


class ComparedModel:
    """A trained model, its training and held-out images, and a generator of samples."""

    def __init__(self, trained: TrainedModel, settings: ModelComparison, *, seed: int):
        """Read the images.

        Raises:
          UsageError: guidance or labels that the model cannot have; missing data; sets that are too
            small or too large to compare.
        """
        self.trained, self._settings, self._seed = trained, settings, seed
        sampler = ancestral(trained.model.schedule)
        self._generator = generator_with(trained, settings.conditions, sampler, {})
        data = trained.model.config.data
        train, self._other_data = load_evaluated(
            trained, data.train_split, data_dir=settings.data_dir
        )
        none = data.test_split == "test" and not holds_out(train)
        held_out = None if none else load_split(data, data.test_split, data_dir=settings.data_dir)
        rows, held_out_rows = check_pixel_sets(
            train,
            held_out,
            num_samples=settings.num_samples,
            num_reference=settings.num_reference,
        )
        self._train = in_memory(train, rows).images
        self.floors = {}  # the distance of held-out images, if there are any
        if held_out is not None:
            floor = pixel_frechet_distance(in_memory(held_out, held_out_rows).images, self._train)
            self.floors["frechet"] = floor

    @property
    def chain(self) -> Chain:
        """Return the model's chain."""
        return self.trained.model.chain

    @property
    def record(self) -> dict[str, Any]:
        """Return the settings that the numbers depend on."""
        record = {
            **checkpoint_record(self.trained),
            "num_samples": self._settings.num_samples,
            "made_with": self._generator.record,
            **self._other_data,
        }
        if self._settings.num_reference:  # absent otherwise: for results from before it
            record["num_reference"] = self._settings.num_reference
        return record

    @property
    def name(self) -> str:
        """Return the part of a file's name about the model."""
        trained = self.trained
        return f"_step{trained.step}_{trained.average}_n{self._settings.num_samples}"

    def measure(self, sampler: Sampler) -> dict[str, float]:
        """Return the Frechet distance, the seconds an image takes, and those of compilation."""
        # no record names this sampler, so its programs are shared with no other
        trained = dataclasses.replace(self.trained, programs=Programs())
        generator = dataclasses.replace(self._generator, sampler=sampler, trained=trained)
        images, first = self._make(generator)
        _, again = self._make(generator)
        return {
            "frechet": pixel_frechet_distance(images, self._train),
            "seconds_per_image": again / self._settings.num_samples,
            "seconds_compiling": max(first - again, 0.0),
        }

    def _make(self, generator: ImageGenerator) -> tuple[np.ndarray, float]:
        """Make the images, and return them with the seconds it took."""
        start, count = time.perf_counter(), self._settings.num_samples
        batches = generator.batches(
            np.arange(count),
            seed=self._seed,
            batch_size=min(self._settings.batch_size, count),
        )
        images = np.concatenate([made for _, made in batches])
        return images, time.perf_counter() - start
