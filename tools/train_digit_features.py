"""Train the network of the features `digits` on the 1,497 bundled training digits.

    python tools/train_digit_features.py ddpm_jax/measuring/digit_features.npz

It takes about 20 s on two cores. Trained again on the same machine it gives the same numbers;
elsewhere sums are taken in another order. The file has the parameters of
`models.digit_classifier.DigitClassifier` in float16, by their paths.
"""

import argparse
import io
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.data.digits import NUM_TRAIN, scans
from ddpm_jax.data.transforms import to_model_range
from ddpm_jax.models.digit_classifier import SIDE, DigitClassifier
from ddpm_jax.randomness import base_key, init_key

STEPS, BATCH_SIZE = 1500, 64
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05


def split():
    """Return (images, labels) of the training digits and of the held-out ones."""
    images, labels = scans()
    order = np.random.RandomState(0).permutation(len(images))  # as `data.digits` splits them
    return [(images[rows], labels[rows]) for rows in (order[:NUM_TRAIN], order[NUM_TRAIN:])]


def train(images, labels, steps=STEPS):
    """Return the parameters, float16, by their paths joined with slashes."""
    model = DigitClassifier()
    params = model.init(init_key(base_key(0)), jnp.zeros((1, SIDE, SIDE, 1)))["params"]
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
    optimiser = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)

    def loss(params, x, y):
        logits = model.apply({"params": params}, x).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state, x, y):
        updates, state = optimiser.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    draws = np.random.RandomState(0)
    x, state = np.asarray(to_model_range(images)), optimiser.init(params)
    for _ in range(steps):
        rows = draws.randint(len(x), size=BATCH_SIZE)
        params, state = step(params, state, x[rows], labels[rows])
    return {
        name: np.asarray(value, np.float16) for name, value in flatten_dict(params, sep="/").items()
    }


def accuracy(weights, images, labels):
    """Return the share of images that a file's parameters classify rightly."""
    params = {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}
    variables = {"params": unflatten_dict(params, sep="/")}
    logits = DigitClassifier().apply(variables, to_model_range(images)).logits
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def as_npz(weights):
    """Return an NPZ file of arrays, in which nothing depends on the time."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in sorted(weights):
            member = io.BytesIO()
            np.lib.format.write_array(member, weights[name], version=(1, 0))
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, member.getvalue(), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    training, held_out = split()
    weights = train(*training)
    for name, part in (("training", training), ("held-out", held_out)):
        print(f"{name} digits classified rightly: {accuracy(weights, *part):.4f}")
    out.write_bytes(as_npz(weights))


if __name__ == "__main__":
    main()
