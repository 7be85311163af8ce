"""The arithmetic of memory against states and networks as they are; slopes of known powers."""

import pathlib

import growth
import memory
import pytest

from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.trainer import build_training, state_shapes

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.mark.full
def test_a_parameter_takes_16_bytes_of_a_training_state():
    model = build(configs.load_config(str(CONFIGS / "digits.py")))
    state = state_shapes(model, build_training(model))
    parameters = memory.bytes_of(state.params) / 4
    assert memory.bytes_of(state) == pytest.approx(memory.STATE_BYTES * parameters, rel=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_the_memory_of_a_deep_transformer_follows_from_two_shallow_ones(remat):
    def kept(of):
        return memory.kept_bytes(of, remat=remat, dtype="bfloat16")

    deep = memory.transformer(128, 4)
    assert memory.of_any_depth(kept, deep) == kept(deep)
    assert memory.of_any_depth(memory.num_parameters, deep) == memory.num_parameters(deep)


def test_recomputed_blocks_keep_their_inputs_alone():
    """Twelve more blocks keep twelve more arrays of [256 tokens, 128 channels] in bfloat16."""

    def kept(of):
        return memory.kept_bytes(of, remat="blocks", dtype="bfloat16")

    block = kept(memory.transformer(128, 2)) - kept(memory.transformer(128, 1))
    assert 256 * 128 * 2 <= block < 1.1 * 256 * 128 * 2


def test_a_slope_is_the_exponent_and_one_above_its_bound_a_defect():
    sizes = [1, 2, 4, 8, 16]
    overhead = [7.0 + size**1.5 if size < 4 else size**1.5 for size in sizes]
    cost = growth.Cost("", sizes, overhead, "s", 1.0)
    assert cost.slope == pytest.approx(1.5)
    assert cost.is_defect
    assert not cost._replace(bound=1.5).is_defect
    assert not cost._replace(bound=None).is_defect
