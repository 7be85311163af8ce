"""A model built from what a family says of foreign files, with their weights."""

from typing import NamedTuple

import pytest

from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.foreign_models import foreign_config
from ddpm_jax.experiments.models import Model


class Imported(NamedTuple):
    model: Model
    params: dict  # kind -> parameters


@pytest.fixture(scope="session")
def imported():
    """Return imported(foreign, request): the model of a `Foreign`, and its parameters by kind."""

    def make(foreign, request):
        model = build(foreign_config(foreign, request))
        params = {
            kind: foreign.read(tensors, model.network) for kind, tensors in foreign.weights.items()
        }
        return Imported(model, params)

    return make
