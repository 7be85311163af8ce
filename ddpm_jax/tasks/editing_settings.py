"""Settings of images made from pictures: editing, inpainting, interpolation, reconstruction.

A picture or mask is the name of a file or an array: uint8 [H, W, C] or [H, W] for a picture, bool
or uint8 [H, W] for a mask.
"""

import dataclasses

import numpy as np

from ddpm_jax.errors import UsageError
from ddpm_jax.limits import MAX_SEED, MAX_TIMESTEPS
from ddpm_jax.settings import Settings, setting

MAX_RESAMPLINGS = 1000  # of a stretch; Lugmayr et al. 2022 have 10
MAX_ON_THE_WAY = 1000  # images from one end to the other, all made at a time
MAX_CORRECTIONS = 100  # of a step; they converge within a few


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Editing(Settings):
    """Images that start from a picture (SDEdit, Meng et al. 2022)."""

    image: str | np.ndarray | None = setting(
        None,
        "Start from this picture instead of noise; see strength.",
        flag="init_image",
        path=True,
    )
    strength: float = setting(
        0.8,
        "With init_image: how much is generated again, above 0 to 1.",
        valid=lambda value: 0 < value <= 1,
        wanted="above 0 and at most 1",
    )
    # float [h, w, c], standard normal: the picture's latent is this sample of it, not the mean
    latent_noise: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check every field, and that they go together."""
        super().__post_init__()
        if self.image is None and self.strength != type(self).strength:
            raise UsageError(
                "strength says how much of init_image is made again: give that too, or leave it "
                "out."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inpainting(Settings):
    """Images that keep a part of a picture (RePaint, Lugmayr et al. 2022)."""

    image: str | np.ndarray | None = setting(
        None, "Paint over this picture where the mask is white.", flag="inpaint", path=True
    )
    mask: str | np.ndarray | None = setting(
        None, "With inpaint: a picture of the same size, white where to paint.", path=True
    )
    resamplings: int | None = setting(
        None,
        "With inpaint: how often each stretch of the chain is walked (default: 10).",
        lower=1,
        upper=MAX_RESAMPLINGS,
    )
    jump: int | None = setting(
        None,
        "With inpaint: steps in a stretch, by default a 25th of the chain.",
        lower=1,
        upper=MAX_TIMESTEPS,
    )

    def __post_init__(self) -> None:
        """Check every field, and that they go together."""
        super().__post_init__()
        for name in ("mask", "resamplings", "jump"):
            if self.image is None and getattr(self, name) is not None:
                raise UsageError(f"{name} belongs to inpaint: give that too, or leave it out.")
        if self.image is not None and self.mask is None:
            raise UsageError(
                "inpaint needs mask: a picture of the same size, white where it is to be painted."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Interpolation(Settings, prefix="interpolate_"):
    """Images between two pictures, or between the noise of two seeds."""

    images: tuple[str | np.ndarray, str | np.ndarray] | None = setting(
        None,
        "Two image files: draw the way from A to B through x_t.",
        flag="interpolate",
        path=True,
        metavar="A B",
    )
    t: int | None = setting(
        None,
        "Which t, 0 (least noise) to steps - 1; by default half of it.",
        lower=0,
        upper=MAX_TIMESTEPS - 1,
    )
    seeds: tuple[int, int] | None = setting(
        None,
        "Two seeds: draw the images on the arc between their x_T of image 0, by any sampler; what "
        "noise it adds is that of seed for all of them.",
        metavar="I,J",
        lower=0,
        upper=MAX_SEED,
    )
    steps: int = setting(
        11,
        "With interpolate or interpolate_seeds: how many images, both ends included.",
        lower=2,
        upper=MAX_ON_THE_WAY,
    )

    def __post_init__(self) -> None:
        """Check every field, and that they go together."""
        super().__post_init__()
        if self.images is not None and self.seeds is not None:
            raise UsageError(
                "interpolate and interpolate_seeds each draw a picture of their own: give one of "
                "them."
            )
        if self.t is not None and self.images is None:
            raise UsageError("interpolate_t belongs to interpolate: give it with that only.")
        if self.steps != type(self).steps and self.images is None and self.seeds is None:
            raise UsageError(
                "interpolate_steps belongs to interpolate and interpolate_seeds: give it with "
                "these only."
            )
        if self.seeds is not None and self.seeds[0] == self.seeds[1]:
            raise UsageError(
                f"interpolate_seeds {self.seeds[0]},{self.seeds[1]}: between a seed and itself all "
                "images are the same, give two."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction(Settings):
    """A picture turned into its own x_T by DDIM inversion, and back by DDIM."""

    image: str | np.ndarray | None = setting(
        None,
        "Picture to turn into its own x_T and back: DDIM inversion and DDIM over the same times, "
        "nothing clipped.",
        flag="reconstruct",
        path=True,
    )
    corrections: int = setting(
        0,
        "With reconstruct: how often each step up is corrected, each at the price of one more "
        "evaluation.",
        lower=0,
        upper=MAX_CORRECTIONS,
    )

    def __post_init__(self) -> None:
        """Check every field, and that they go together."""
        super().__post_init__()
        if self.corrections and self.image is None:
            raise UsageError("corrections belongs to reconstruct: give it with that only.")
