"""A model built from what a family says of foreign files, with their weights."""

from typing import NamedTuple

import pytest

from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.config import default_config
from ddpm_jax.experiments.models import Model


class Imported(NamedTuple):
    model: Model
    params: dict  # kind -> parameters


@pytest.fixture(scope="session")
def imported():
    """Return imported(foreign, request): the model of a `Foreign`, and its parameters by kind."""

    def make(foreign, request):
        config = default_config()
        assumed = {name: guess.value for name, guess in foreign.assumed.items()}
        values = {**request.fields, **assumed, **foreign.fields}
        config.update_from_flattened_dict(values)
        model = build(config)
        params = {
            kind: foreign.read(tensors, model.network) for kind, tensors in foreign.weights.items()
        }
        return Imported(model, params)

    return make
