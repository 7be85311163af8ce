"""The bundled data: scikit-learn's 1,797 handwritten digits, 8x8 grey, as a TFDS dataset.

No network is needed. They are the test set of UCI's "Optical Recognition of Handwritten Digits"
(Alpaydin & Kaynak, 1998). A pixel counts the ink bits in a 4x4 cell, 0..16, and is stored as
0..255. TFDS needs TensorFlow to encode a `features.Image` but not a `features.Tensor`, which is why
the image is the latter.
"""

import contextlib
import dataclasses
import io
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from ddpm_jax.data.captions import AUTO, fingerprint_of, make_captions
from ddpm_jax.data.data_dir import check_no_pictures
from ddpm_jax.data.in_memory import ArraySource, decode_source
from ddpm_jax.errors import FailureError, UsageError, choose
from ddpm_jax.files import is_remote

NUM_TRAIN, NUM_TEST = 1497, 300
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ("{}", "a handwritten {}", "the digit {}", "a scan of the number {}")


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """8x8 handwritten digits, ten classes."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS's own idiom, hence a mutable attribute of the class
    RELEASE_NOTES = {  # noqa: RUF012
        "1.0.0": "1,497 train and 300 test images, split by RandomState(0)."
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="8x8 grey scans of handwritten digits, 0..255, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8, encoding="zlib"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        images, labels = scans()
        # NumPy has frozen the stream of RandomState (NEP 19): the same 300 are always held out.
        order = np.random.RandomState(0).permutation(len(images))
        return {
            "train": self._generate_examples(images, labels, order[:NUM_TRAIN]),
            "test": self._generate_examples(images, labels, order[NUM_TRAIN:]),
        }

    def _generate_examples(self, images, labels, rows):
        for key, row in enumerate(rows):
            yield key, {"image": images[row], "label": labels[row]}


_REFUSED = (OSError, RuntimeError)  # array_record reports a full disk as the latter


def scans() -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [1797, 8, 8, 1], 0..16 scaled to 0..255, and labels [1797]."""
    # takes a second to import, and is needed only once for a data_dir
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8), digits.target


def captioned(source: ArraySource, field: str) -> ArraySource:
    """Return a split of the digits in memory, with captions made of the labels.

    Raises:
      UsageError: `field` is not "auto".
    """
    choose("captions of the bundled digits", field, dict.fromkeys((AUTO,)))
    source = decode_source(source)
    captions = make_captions(
        [form.format(NAMES[label]) for form in CAPTIONS] for label in source.labels
    )
    fingerprint = f"{source.fingerprint}{fingerprint_of(captions)}"
    return dataclasses.replace(source, fingerprint=fingerprint, captions=captions)


def prepare(data_dir: str) -> str:
    """Write the dataset below `data_dir` ("" for TFDS's default) if needed; return its TFDS name.

    Several processes may prepare it at the same time: each writes a folder of its own, and the
    first to finish renames it to the final name.

    Raises:
      UsageError: `data_dir` lies in a bucket, where nothing is prepared, or is a folder of
        pictures.
      FailureError: it cannot be written there.
    """
    if is_remote(data_dir):
        raise UsageError(
            "The bundled digits are written to a directory of this machine: data_dir is "
            f"{data_dir}."
        )
    folder = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    there = (folder / "digits" / str(Digits.VERSION)).exists()
    check_no_pictures(data_dir, name="digits", writing=not there)
    try:
        # A builder would read existing files before `tfds_source` has checked them.
        if not there:
            _write(Digits(data_dir=data_dir or None))
    except _REFUSED as error:
        raise FailureError(
            "The bundled digits cannot be written below "
            f"{data_dir or tfds.core.constants.DATA_DIR} ({error}): set data_dir to a folder you "
            "can write to."
        ) from error
    return f"digits:{Digits.VERSION}"


def _write(builder: Digits) -> None:
    try:
        # TFDS would announce a download that does not happen, and draw progress bars.
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except _REFUSED:
        if not builder.data_path.exists():  # else another process was first
            raise
