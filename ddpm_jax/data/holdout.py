"""The held-out part of a dataset without one of its own: the same on every machine."""

import numpy as np

from ddpm_jax.errors import UsageError


def split_rows(num_examples: int, *, split: str, holdout: float, where: str) -> np.ndarray:
    """Return the sorted rows of `split`, "train" or "test", with a share `holdout` held out.

    The test rows are drawn by `np.random.RandomState(0)`, whose stream NumPy has frozen (NEP 19),
    so that the result depends on `num_examples` and `holdout` alone. With `holdout` 0, "train" is
    everything.

    Raises:
      UsageError: "test" is requested and `holdout` is 0, or nothing would be left to train on.
    """
    if holdout == 0:
        if split == "test":
            raise UsageError(
                f"{where} has no test split of its own: set holdout, say to 0.1, before training "
                "to set a part of it aside, or evaluate with --split train or with the --data_dir "
                "of images that have one."
            )
        return np.arange(num_examples)
    num_test = max(1, round(num_examples * holdout))
    if num_test >= num_examples:
        raise UsageError(
            f"holdout={holdout} leaves nothing to train on of the {num_examples} images of {where}."
        )
    order = np.random.RandomState(0).permutation(num_examples)
    return np.sort(order[:num_test] if split == "test" else order[num_test:])
