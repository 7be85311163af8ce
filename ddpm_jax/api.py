"""`ddpm_jax.load`: a trained model as an object, with samples, edits and likelihoods as arrays.

    model = ddpm_jax.load("runs/digits_cond")
    images = model.sample(16, labels=[3, 5], sampler="dpmpp_2m", steps=20)   # uint8 [16, 8, 8, 1]

Images are those that `ddpm-jax sample` makes with the same settings. A picture is the name of a
file, or an array uint8 [H, W, C] or [H, W]; it is resized and cropped to the model's size as in
training.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.codec import PixelCodec
from ddpm_jax.experiments.denoising import NetworkModel, Weights
from ddpm_jax.experiments.file_options import FileOptions
from ddpm_jax.experiments.loading import load_trained
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.interop.hub import check_push
from ddpm_jax.measuring.bits_per_dim import BitsPerDim, bits_per_dim
from ddpm_jax.measuring.evaluation_call import evaluate_samples
from ddpm_jax.tasks.call_arguments import conditions_from, sampling_from
from ddpm_jax.tasks.exporting import LICENSE
from ddpm_jax.tasks.image_arrays import Trajectory, make_images, make_trajectory
from ddpm_jax.tasks.loaded_models import Classifier, FirstStage, check_latents
from ddpm_jax.tasks.network_exporting import write_for_diffusers
from ddpm_jax.tasks.photos import Picture
from ddpm_jax.tasks.picture_methods import PictureMethods
from ddpm_jax.tasks.publishing import publish
from ddpm_jax.tasks.sampling import generator_on, make_generator
from ddpm_jax.tasks.sampling_settings import Guidance


def load(
    directory: str | os.PathLike,
    *,
    step: int | None = None,
    raw_weights: bool = False,
    dtype: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
    preset: str | None = None,
    fields: Mapping[str, Any] | None = None,
    lora: str | os.PathLike | None = None,
    lora_scale: float = 1.0,
) -> "Model | Classifier | FirstStage":
    """Read a trained model from the directory of its run, or from the files of another project.

    Args:
      directory: of a training run, on disk or in a bucket. Or a directory of Stable Diffusion in
        diffusers' layout, its single file of the original code, or any files that `ddpm-jax import`
        takes (docs/checkpoints.md); or the name of these on the Hugging Face hub, "owner/model" or
        "owner/model@revision".
      step: which checkpoint; the newest by default.
      raw_weights: the weights as trained, instead of their moving average.
      dtype: of the computation, "float32" or "bfloat16", and of Stable Diffusion's weights; None
        for that of the run, and float32 for Stable Diffusion.
      variant: of the weights in a directory of diffusers, "fp16" say.
      prediction_type: "epsilon" or "v_prediction", for a single file of Stable Diffusion, which
        does not say; None as in the released models of its kind.
      preset: a released model whose settings another project's files do not say.
      fields: likewise, fields of a config by dotted name, as in {"model.num_heads": 4}.
      lora: a file of low-rank updates of its U-Net and text encoder, as diffusers and PEFT write
        them: merged.
      lora_scale: further factor of these updates, 0 to 100.

    Returns:
      `Model`; `Classifier` or `FirstStage` if the run trained one of these.

    Raises:
      UsageError: there is no such checkpoint, or it is not one of this package.
      FailureError: its files are damaged.
    """
    trained = load_trained(
        directory,
        None,
        step=step,
        raw_weights=raw_weights,
        dtype=dtype,
        files=FileOptions(
            variant=variant, prediction_type=prediction_type, preset=preset, fields=fields or {}
        ),
        lora=lora,
        lora_scale=lora_scale,
    )
    kinds = {"classifier": Classifier, "first_stage": FirstStage}
    return kinds.get(trained.model.config.objective, Model)(trained)


def from_network(
    network: Callable[..., Any],
    process: Process,
    image_shape: tuple[int, int, int],
    *,
    num_classes: int = 0,
) -> "Model":
    """Return the model of any network, without a checkpoint.

    Args:
      network: (x_t [B, H, W, C], time float [B]) -> output [B, H, W, C or 2C], traceable by JAX.
        With classes it takes a third argument, int32 [B]: labels in 0..K-1, and K for the null
        class of guidance.
      process: what it was trained on, of `make_process`.
      image_shape: (H, W, C), H = W.
      num_classes: K; 0 for none.
    """
    model = NetworkModel(network, process, PixelCodec(tuple(image_shape)), num_classes)
    return Model(TrainedModel(model, Weights(()), step=0, average="given"))


class Model(PictureMethods):
    """A diffusion model with its weights.

    The `settings` of its methods are those of `sample` about the sampler and the conditions:
    labels, sampler, steps, spacing, options, guidance, clip, low_res.
    """

    @property
    def process(self) -> Process:
        """Return the chain of noise levels and the meaning of the network's output."""
        return self.trained.model.process

    @property
    def chain(self) -> Any:
        """Return the `Chain`, for `make_sampler`."""
        return self.process.chain

    def write_diffusers(
        self,
        directory: str | os.PathLike,
        *,
        license: str = LICENSE,
        push: str | None = None,
        private: bool = False,
    ) -> None:
        """Write a model as a directory for diffusers: `network_exporting.write_for_diffusers`.

        Args:
          directory: where; nothing may be there yet.
          license: of the weights, for the model card.
          push: "owner/name" of a model on the Hugging Face hub, which it is added to as well.
          private: whether that model, if it is made, is seen by its owner alone.

        Raises:
          UsageError: it is another kind of model, or has a network that diffusers lacks; `push`
            is no name, or `huggingface_hub` is not installed.
          FailureError: it cannot be written or pushed.
        """
        repo = check_push(push) if push else ""
        write_for_diffusers(self.trained, directory, license=license)
        if repo:
            publish(directory, repo, "diffusers", private=private)

    def sample(
        self,
        n: int | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        labels: Sequence[int | str] | int | str | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        spacing: str | Sequence[float] | None = None,
        levels: str | None = None,
        options: Mapping[str, Any] | None = None,
        guidance: Guidance | float | None = None,
        clip: str | None = None,
        low_res: Picture | None = None,
        height: int | None = None,
        width: int | None = None,
        tile: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        noise: Any = None,
        step_noise: Any = None,
        trajectory: bool = False,
    ) -> np.ndarray | Trajectory:
        """Make images: image i depends on the seed and on i.

        Args:
          n: how many; by default one for each prompt, or one.
          prompt: what they show, for a model that reads texts: repeated over the images.
          negative_prompt: what guidance leads away from, in place of any image.
          labels: classes by number or name, repeated over the images. By default all in turn.
          sampler: a key of `samplers.registry.SAMPLERS`; by default "ancestral", and "lms" for a
            model that reads texts.
          steps: of the chain, 1..T; by default T for ancestral and 50 for others.
          spacing: which noise levels: a key of `samplers.spacing.SPACINGS`, or the times.
          levels: "exact", the default, or "diffusers" for those of its schedulers.
          options: of the sampler, by name.
          guidance: a `Guidance`, or the scale of classifier-free guidance; by default none, and
            the config's `text.guidance` for a model that reads texts.
          clip: a key of `diffusion.clipping.CLIPPINGS`; by default "static" for pixels.
          low_res: the picture to enlarge, for a super-resolution model.
          height, width: of the images in pixels, for a U-Net; by default those of training.
          tile: decode latents in tiles of so many pixels a side, which limits the memory; by
            default whole images.
          seed: 0..2^32-1.
          batch_size: images made at a time, over all devices.
          noise: float [n, h, w, c], in place of the seed's x_T.
          step_noise: float [N, n, h, w, c], standard normal, in place of the seed's noise of each
            of the sampler's N rows; [N, draws, n, h, w, c] for more than one draw a row.
          trajectory: also return the chains.

        Returns:
          uint8 [n, H, W, C]; with `trajectory` a `Trajectory` of N+1 moments for each image.

        Raises:
          UsageError: settings that this model cannot have.
          FailureError: an image that is not finite.
        """
        sampling = sampling_from(
            labels=labels,
            sampler=sampler,
            steps=steps,
            spacing=spacing,
            levels=levels,
            options=options,
            guidance=guidance,
            clip=clip,
            low_res=low_res,
            prompt=prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            tile=tile,
        )
        n = len(sampling.prompt or (None,)) if n is None else n
        make = make_trajectory if trajectory else make_images
        generator = make_generator(self.trained, sampling)
        return make(
            generator, n, seed=seed, batch_size=batch_size, noise=noise, step_noise=step_noise
        )

    def encode(self, images: Picture) -> np.ndarray:
        """Return x_0 of images: float32 [n, h, w, c], or [h, w, c] for one.

        For a model over pixels x_0 is in [-1, 1]; for one over latents it is the scaled latents.

        Args:
          images: uint8 [n, H, W, C], one picture [H, W, C] or [H, W], or the name of a file.

        Raises:
          UsageError: a picture that cannot be used.
        """
        photos, one = self._pictures(images)
        x_0 = np.asarray(self.trained.encode(photos))
        return x_0[0] if one else x_0

    def decode(self, z: Any) -> np.ndarray:
        """Return the images of x_0 [n, h, w, c] or [h, w, c]: uint8 [n, H, W, C] or [H, W, C].

        Raises:
          UsageError: another shape.
        """
        z, one = check_latents(z, self.trained.model.shape)
        images = self._call("decode", self.trained.model.decode, z)
        return images[0] if one else images

    def bits_per_dim(
        self,
        images: np.ndarray,
        method: str = "bound",
        *,
        labels: Sequence[int | str] | None = None,
        captions: Sequence[str] | str | None = None,
        **settings: Any,
    ) -> BitsPerDim:
        """Return the bits per dimension of images, with standard errors.

        See `measuring.bits_per_dim`.

        Args:
          images: uint8 [N, H, W, C]. The draws of image i follow from the seed and i.
          method: "bound", the variational bound, or "ode", the likelihood by the probability flow.
          labels: classes by number or name, one for each image, if the model has classes.
          captions: a text for each image, or one for all, if the model reads texts.
          settings: draws, seed, batch_size; for the bound timestep_stride; for the ODE trace,
            probes, rtol and atol.

        Raises:
          UsageError: images, conditions or settings that this model cannot have; no likelihood.
          FailureError: a term of the bound that is not finite.
        """
        given = {"labels": labels, "captions": captions}
        return bits_per_dim(self.trained, images, method, **given, **settings)

    def evaluate(
        self,
        metrics: str | Sequence[str] = "fid",
        *,
        out: str | os.PathLike | None = None,
        **settings: Any,
    ) -> dict[str, dict[str, Any]]:
        """Measure one set of samples against images, by default those of training.

            found = model.evaluate("fid,prdc", num_samples=5000, features="digits")
            found["fid"]["value"]

        See `compare_images` for sets that are there, and docs/evaluation.md for the metrics.

        Args:
          metrics: keys of `measuring.feature_metrics.FEATURE_METRICS`.
          out: directory for records and samples, from which a stopped call goes on; None keeps
            nothing.
          settings: num_samples, seed, batch_size, reference, num_reference, split, data_dir;
            features (also a function of uint8 [N, H, W, C] that returns numbers [N, D]),
            feature_weights, resize, rounding, feature_batch_size, feature_cache; and those of
            `sample` about the sampler and the conditions.

        Returns:
          Metric -> its record: value, error, results, and the settings that they depend on.

        Raises:
          UsageError: settings that this model or these metrics cannot have.
          FailureError: a sample that is not finite, or a file that cannot be read or written.
        """
        return evaluate_samples(self.trained, metrics, out, **settings)

    def denoiser(
        self,
        schedule: Schedule | None = None,
        *,
        labels: Sequence[int | str] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        guidance: Guidance | float | None = None,
        clip: str | None = None,
        low_res: Picture | None = None,
    ) -> Denoiser:
        """Return (x_t [B, h, w, c], t int [B]) -> `Prediction`, for `ddpm_jax.sample`.

        Args:
          schedule: of the sampler that will call it, `sampler.schedule`; None for the whole chain.
          labels, prompt: one for each image of the batches that it will be given.
          negative_prompt, guidance, clip, low_res: as in `sample`.

        Raises:
          UsageError: settings that this model cannot have.
        """
        conditions = conditions_from(
            labels=labels,
            prompt=prompt,
            negative_prompt=negative_prompt,
            guidance=guidance,
            clip=clip,
            low_res=low_res,
        )
        generator = generator_on(self.trained, conditions, schedule)
        if conditions.labels is None and generator.labels is not None:
            raise UsageError("labels: give one for each image of a batch, as in labels=[3, 5].")
        images = max(len(conditions.labels or (0,)), len(conditions.prompt or (0,)))
        inputs = generator.inputs(np.arange(images))
        return generator.denoiser(generator.params, generator.sampler.schedule, inputs)

    def _facts(self) -> list[str]:
        model = self.trained.model
        facts = [f"T = {self.chain.num_timesteps}"]
        if not model.codec.is_exact:
            facts.append(f"latents {'x'.join(map(str, model.shape))}")
        if model.conditioning.has_text:
            facts.append(f"texts of {model.encoder.context_length} tokens")
        if model.conditioning.num_classes:
            facts.append(f"{model.conditioning.num_classes} classes")
        return facts
