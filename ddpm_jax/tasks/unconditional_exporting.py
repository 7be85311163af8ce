"""Models of pixels written for diffusers: a directory that DDPMPipeline or DDIMPipeline loads."""

import os
import pathlib

import jax
import numpy as np

from ddpm_jax.errors import UsageError, choose
from ddpm_jax.experiments.models import DiffusionModel
from ddpm_jax.experiments.run_settings import frozen_first_stage
from ddpm_jax.experiments.scheduler_fields import facts_over_pixels
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.interop.diffusers import unet_params_to_diffusers
from ddpm_jax.interop.diffusers_unet2d_config import CLASS, unet2d_to_config
from ddpm_jax.interop.diffusers_writing import check_new, write_index, write_part, written_whole
from ddpm_jax.interop.pipeline_parts import Part
from ddpm_jax.interop.schedulers import scheduler_config
from ddpm_jax.models.unet import UNet
from ddpm_jax.tasks.exporting import LICENSE, check_is_of_others

SCHEDULERS = {"DDPMPipeline": "DDPMScheduler", "DDIMPipeline": "DDIMScheduler"}
_CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
license: {license}
tags:
- {pipeline}
---

# {name}

A diffusion model of images of {height}x{width} pixels and {channels} channels, in the layout of
diffusers:

```python
{code}
```

| | |
|---|---|
| network | {network}, {parameters:,} parameters |
| weights | {weights} of step {step}, SHA-256 {sha256} |
| chain | {timesteps} steps, {schedule} |
| prediction | {prediction} |
| scheduler | {scheduler} |
"""
_PIPELINE = """from diffusers import {pipeline}

images = {pipeline}.from_pretrained("{name}")(batch_size=4).images"""
_BY_CLASS = """import torch
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("{name}")  # cannot be called: it passes no class on
x, labels = torch.randn({rows}, {channels}, {height}, {width}), torch.arange({rows})
for t in pipeline.scheduler.timesteps:
    with torch.no_grad():
        output = pipeline.unet(x, t, class_labels=labels).sample
    x = pipeline.scheduler.step(output, t, x).prev_sample"""
_ROWS = 4  # the most images that the code of a card makes by class


def write_unconditional(
    trained: TrainedModel,
    directory: str | os.PathLike,
    *,
    pipeline: str = "DDPMPipeline",
    license: str = LICENSE,
) -> None:
    """Write a model of pixels as a directory that diffusers loads.

    The network is that of the run with the weights of `trained`, in float32 and today's names. Of a
    model by class, the null class is the last of the classes there. A kill or a full disk leaves
    nothing under the directory's name.

    Args:
      trained: a diffusion model over pixels with a U-Net, unconditional or by class.
      directory: where; nothing may be there yet.
      pipeline: a key of `SCHEDULERS`.
      license: of the weights, for the model card.

    Raises:
      UsageError: it is another kind of model, or has an option that diffusers lacks, which is
        named; the directory exists or is in a bucket; what `check_is_of_others` raises.
      FailureError: it cannot be written.
    """
    scheduler = choose("pipeline of diffusers", pipeline, SCHEDULERS)
    target, model = check_new(directory), trained.model
    check_is_of_others(trained)
    _check_kind(trained)
    channels = model.image_shape[2]
    config = unet2d_to_config(model.network, model.config.data.image_size, channels)
    facts = scheduler_config(facts_over_pixels(model.config, scheduler))
    params = jax.tree.map(np.asarray, trained.params)
    part = Part(config, unet_params_to_diffusers(params, model.network))
    with written_whole(target) as half:
        write_part(half, "unet", part)
        write_index(half, pipeline, facts, {"unet": ["diffusers", CLASS]})
        (half / "README.md").write_text(_card(trained, target, part, pipeline, license))


def _check_kind(trained: TrainedModel) -> None:
    """Refuse a model that is none of pixels with a U-Net.

    Raises:
      UsageError: it is.
    """
    model = trained.model
    is_ours = isinstance(model, DiffusionModel) and isinstance(model.network, UNet)
    if not is_ours or frozen_first_stage(model) is not None:
        raise UsageError(
            f"{trained.directory} cannot be written as a pipeline of {CLASS}: that is a diffusion "
            "model over pixels with a U-Net that reads no texts."
        )
    if model.conditioning.low_res_factor:
        raise UsageError(
            f"condition.low_res_factor is {model.conditioning.low_res_factor}, and no pipeline of "
            f"{CLASS} enlarges images."
        )


def _card(
    trained: TrainedModel, target: pathlib.Path, part: Part, pipeline: str, license: str
) -> str:
    model, diffusion = trained.model, trained.model.config.diffusion
    height, width, channels = model.image_shape
    shape = {"height": height, "width": width, "channels": channels}
    num_classes = model.conditioning.num_classes
    code, rows = _BY_CLASS if num_classes else _PIPELINE, min(num_classes, _ROWS)
    return _CARD.format(
        name=target.name,
        pipeline=pipeline,
        license=license,
        code=code.format(pipeline=pipeline, name=target.name, rows=rows, **shape),
        **shape,
        network=CLASS,
        parameters=sum(part.tensors[name].size for name in part.tensors),
        weights={"ema": "moving average"}.get(trained.average, "weights as trained"),
        step=f"{trained.step:,}",
        sha256=trained.sha256,
        timesteps=f"{diffusion.num_timesteps:,}",
        schedule=diffusion.schedule,
        prediction=diffusion.parameterization,
        scheduler=SCHEDULERS[pipeline],
    )
