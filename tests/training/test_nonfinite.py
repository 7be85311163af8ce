"""Steps whose loss or gradient is not finite: passed over without a trace, counted, or the end of
the run; and why."""

import io
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.losses import Loss
from ddpm_jax.diffusion.process import make_process
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.distributed.pmap import map_step, replicate, several, to_devices
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.models.unet import UNet
from ddpm_jax.monitoring import records
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.randomness import base_key
from ddpm_jax.training.diagnosis import make_explain
from ddpm_jax.training.objective import Drawing, Objective, diffusion_objective
from ddpm_jax.training.options import LoopOptions
from ddpm_jax.training.state import TrainState, create
from ddpm_jax.training.step import StepOptions, make_train_step
from ddpm_jax.training.training_loop import Observers, Saving, Start, Steps, train

ON_DEVICES = pathlib.Path(__file__).with_name("nonfinite_on_devices.py")
BATCH = 8


def _assert_equal(ours, theirs):
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))


def _good(linear, n):
    return linear.batch(BATCH, seed=n)


def _bad(linear, n):
    batch = _good(linear, n)
    batch["y"][3] = np.nan
    return batch


def _train(linear, batches, **options):
    state, step = linear.start(optax.adam(0.1), **options)
    for batch in batches:
        state, _ = linear.step(step, state, batch)
    return jax.device_get(state)


# The step


def test_a_run_that_skips_a_batch_ends_as_one_that_never_saw_it(linear):
    batches = [_good(linear, n) for n in range(6)]
    seen = _train(
        linear,
        [*batches[:2], _bad(linear, 9), *batches[2:5], _bad(linear, 9), batches[5]],
        skip_nonfinite=1,
    )
    unseen = _train(linear, batches)
    _assert_equal(seen._replace(step=unseen.step), unseen)
    assert (int(seen.step), int(unseen.step)) == (8, 6)


@pytest.mark.full
def test_the_count_is_of_steps_in_a_row(linear):
    good, bad = _good(linear, 0), _bad(linear, 0)
    for batches, count in (
        ([bad], 1),
        ([bad, bad], 2),
        ([bad, bad, good], 0),
        ([good, bad, good, bad], 1),
    ):
        assert int(_train(linear, batches, skip_nonfinite=2).nonfinite) == count


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_after_one_too_many_the_state_stands_still_before_the_failing_step(linear, allowed):
    before = _train(
        linear, [_good(linear, 0)] + [_bad(linear, 1)] * allowed, skip_nonfinite=allowed
    )
    after = _train(
        linear,
        [_good(linear, 0)] + [_bad(linear, 1)] * (allowed + 1) + [_good(linear, 2)] * 3,
        skip_nonfinite=allowed,
    )
    _assert_equal(after._replace(nonfinite=before.nonfinite), before)
    assert int(after.step) == 1 + allowed
    assert int(after.nonfinite) == allowed + 1


def test_several_steps_in_a_call_stand_still_in_the_middle(linear):
    objective, optimizer = linear.objective(), optax.adam(0.1)
    step = make_train_step(
        objective, optimizer, optax.constant_schedule(0.1), StepOptions(skip_nonfinite=0)
    )
    batches = [_good(linear, 0), _bad(linear, 1), _good(linear, 2), _good(linear, 3)]
    state = replicate(create(linear.params(), optimizer, objective))
    together, _ = map_step(several(step))(state, to_devices(batches), base_key(0))
    one_by_one = _train(linear, batches[:2])
    assert int(together.step) == int(one_by_one.step) == 1
    _assert_equal(together.params, one_by_one.params)
    _assert_equal(together.opt_state, one_by_one.opt_state)


def test_an_infinite_gradient_of_a_finite_loss_is_skipped_too(linear):
    batch = _good(linear, 0)
    batch["x"], batch["y"] = batch["x"] * np.float32(1e25), batch["y"] * 0
    objective = linear.objective()._replace(
        loss=lambda p, f, s, b, k, i: (jnp.abs(b["x"] @ p["w"]) * 1e-12, b["y"])
    )
    state, step = linear.start(optax.adam(0.1), objective=objective, skip_nonfinite=1)
    state, metrics = linear.step(step, state, batch)
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    before, batch["x"] = jax.device_get(state), batch["x"] * np.float32(1e10)
    state, metrics = linear.step(step, state, batch)
    assert np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["grad_norm"])
    _assert_equal(state.params, before.params)


def test_a_negative_number_of_skips_is_refused(linear):
    with pytest.raises(UsageError, match="skip_nonfinite is -1: it must be at least 0"):
        linear.start(optax.sgd(0.1), skip_nonfinite=-1)


@pytest.mark.full
def test_devices_agree_when_one_of_them_fails_and_it_is_told_why(run_python):
    results = json.loads(run_python(ON_DEVICES, devices=2).stdout)
    assert results["equal on both devices"]
    assert results["params moved"] == [True, False, True]
    assert results["step"] == [1, 2, 3]
    assert "the output of b " in results["why"]
    assert "for 1 of 4 images" in results["why"]


# The loop


class _Batches:
    def __init__(self, linear, poisoned, start=0):
        self._linear, self._poisoned, self._count = linear, poisoned, start

    def __next__(self):
        self._count += 1
        return (_bad if self._count in self._poisoned else _good)(self._linear, self._count)

    def get_state(self):
        return {"batches": self._count}


def _run(
    linear, workdir, poisoned, *, skip, num_steps=12, explain=None, steps_per_call=1, save_every=4
):
    """Trains, or resumes; returns the records."""
    objective, optimizer, rate = linear.objective(), optax.adam(0.1), optax.constant_schedule(0.1)
    step = make_train_step(objective, optimizer, rate, StepOptions(skip_nonfinite=skip))
    checkpointer = Checkpointer(workdir, keep_last=1)
    state = create(linear.params(), optimizer, objective)
    if checkpointer.latest_step() is not None:
        state, _ = checkpointer.resume(state, pytest.fail)
    options = LoopOptions(
        num_steps,
        BATCH,
        log_every=4,
        sample_every=0,
        save_every=save_every,
        steps_per_call=steps_per_call,
    )
    try:
        with MetricWriter(workdir, resume_step=int(state.step)) as writer:
            train(
                Start(state),
                Steps(map_step(step), map_step(several(step)), explain=explain),
                _Batches(linear, poisoned, start=int(state.step)),
                base_key(0),
                options=options._replace(skip_nonfinite=skip),
                saving=Saving(checkpointer, {}),
                observers=Observers(writer, Progress(num_steps, file=io.StringIO())),
            )
    finally:
        checkpointer.close()
    return records.read(workdir)


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_skipped_steps_are_counted_in_the_records_and_do_not_spoil_the_means(
    tmp_path, linear, steps_per_call
):
    written = _run(
        linear, tmp_path, {2, 3, 6, 9, 10, 11, 12}, skip=4, steps_per_call=steps_per_call
    )
    assert [record["skipped"] for record in written] == [2, 1, 4]
    assert np.isfinite([record["loss"] for record in written[:2]]).all()
    assert "loss" not in written[2], "no step of these has one"
    assert written[2]["learning_rate"] == pytest.approx(0.1)


def test_without_the_option_nothing_is_counted(tmp_path, linear):
    assert not any("skipped" in record for record in _run(linear, tmp_path, set(), skip=0))


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_one_too_many_in_a_row_stops_the_run(tmp_path, linear, steps_per_call):
    sentence = (
        r"^loss became nan at step 8, 3 times in a row\. The checkpoint of step 4 is kept; lower .* again, or pass "
        r"over more such steps in a row with train\.skip_nonfinite=3\.$"
    )
    with pytest.raises(FailureError, match=sentence):
        _run(linear, tmp_path, {2, 3, 6, 7, 8}, skip=2, steps_per_call=steps_per_call)


@pytest.mark.full
def test_a_row_of_skips_goes_on_counting_over_a_resume(tmp_path, linear):
    _run(linear, tmp_path, {3, 4, 5}, skip=2, num_steps=4)
    with pytest.raises(FailureError, match="at step 5, 3 times in a row"):
        _run(linear, tmp_path, {3, 4, 5}, skip=2)


def test_what_is_asked_why_is_the_failing_step_though_others_were_dispatched(tmp_path, linear):
    asked = []

    def explain(state, batch, key):
        asked.append((int(state.step), np.argwhere(np.isnan(batch["y"])).tolist(), key))
        return "because"

    for steps_per_call in (1, 4):
        with pytest.raises(
            FailureError, match=r"^loss became nan at step 6: because\. The checkpoint of step 4 is"
        ):
            _run(
                linear,
                tmp_path / str(steps_per_call),
                {6},
                skip=0,
                explain=explain,
                steps_per_call=steps_per_call,
            )
    assert [(step, rows) for step, rows, _ in asked] == [(5, [[3]])] * 2


def test_a_failure_that_does_not_come_again_is_told_as_one(tmp_path, linear):
    with pytest.raises(
        FailureError, match="at step 2: computed again, each part of the batch has a finite loss"
    ):
        _run(linear, tmp_path, {2}, skip=0, explain=lambda state, batch, key: None)


def test_a_failure_is_told_even_if_its_cause_cannot_be_found(tmp_path, linear):
    def explain(state, batch, key):
        raise MemoryError

    with pytest.raises(
        FailureError,
        match=r"at step 2: its cause is not known, because .* failed \(MemoryError\)\. No",
    ):
        _run(linear, tmp_path, {2}, skip=0, explain=explain)


def test_a_checkpoint_from_before_the_counter_is_resumed_with_none(tmp_path, linear):
    state, _ = linear.start(optax.adam(0.1))
    older = {name: field for name, field in state._asdict().items() if name != "nonfinite"}
    checkpointer = Checkpointer(tmp_path, keep_last=1)
    checkpointer.save(3, older, {"batches": 3}, {})
    checkpointer.close()
    restored, _ = Checkpointer(tmp_path, keep_last=1).restore(state)
    assert isinstance(restored, TrainState)
    assert int(restored.nonfinite) == 0
    _assert_equal(restored._replace(nonfinite=state.nonfinite), state)


# Why


def _on_host(tree):
    return jax.tree.map(np.array, tree)


class _Network(nn.Module):
    """Three layers; between the last two, `between` is applied."""

    between: object = staticmethod(lambda x: x)
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        dense = nn.remat(nn.Dense) if self.remat else nn.Dense
        x = dense(4, name="a")(x)
        x = dense(4, name="b")(x)
        return dense(1, name="c")(type(self).between(x))


def _objective(network):
    def loss(params, frozen, state, batch, key, index):
        losses = jnp.square(network.apply({"params": params}, batch["x"])[:, 0])
        return losses, losses

    return Objective(
        init=lambda params: (), loss=loss, update=lambda state, aux: state, metrics=lambda aux: {}
    )


def _why(network, *, params=lambda params: params, x=lambda x: x, parts=2):
    x = x(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))
    tree = params(_on_host(network.init(jax.random.key(0), jnp.ones((1, 3)))["params"]))
    state = replicate(TrainState(jnp.int32(0), tree, tree, (), ()))
    return make_explain(_objective(network), parts=parts)(state, {"x": x}, base_key(0))


def _huge(module):
    def change(params):
        params[module]["kernel"] = np.full_like(params[module]["kernel"], 1e38)
        return params

    return change


@pytest.mark.full
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("module", ["a", "b", "c"])
def test_the_module_whose_output_overflows_first_is_named(module, remat):
    why = _why(_Network(remat=remat), params=_huge(module), x=lambda x: x + 100)
    assert (
        f"the first number that is not finite is in the output of {module} (its input is finite, "
        "up to " in why
    )
    assert "for 2 of 2 images" in why


@pytest.mark.full
def test_arithmetic_between_two_modules_is_told_by_the_one_it_goes_into():
    class Divides(_Network):
        between = staticmethod(lambda x: x / (x - x))

    assert "the first number that is not finite is in the input of c" in _why(Divides())


@pytest.mark.full
def test_an_image_or_a_parameter_that_is_not_finite_is_named():
    def poison(x):
        x[3, 1] = np.inf
        return x

    assert _why(_Network(), x=poison) == (
        "the first number that is not finite is in the input of the network, for 1 of 2 images"
    )

    def change(params):
        params["b"]["bias"][2] = np.nan
        return params

    assert _why(_Network(), params=change) == "the parameter b/bias was not finite before that step"


@pytest.mark.full
def test_a_loss_that_fails_after_the_network_is_told_apart():
    # The output of c is about 1e30, its square is not a float32.
    def change(params):
        params["c"]["bias"] = np.full_like(params["c"]["bias"], 1e30)
        return params

    assert _why(_Network(), params=change) == (
        "the network's output is finite, the loss that is made of it is not, for 2 of 2 images"
    )


@pytest.mark.full
def test_a_weight_over_t_that_fails_is_told_apart_from_the_error_that_it_weighs():
    def uniform_but_for_the_last(schedule, t, parameterization):
        return jnp.where(t == 3, jnp.nan, 1.0)

    process = make_process(Chain(make_betas("linear", 4)), "eps", "fixed_small")
    objective = diffusion_objective(
        lambda params, x_t, time, condition, keys: params["scale"] * x_t,
        process,
        Loss(simple=True, vlb=False, weight=uniform_but_for_the_last),
        Drawing(flip=False),
        timestep_sampling="antithetic",
    )
    params = {"scale": np.float32(1)}
    state = replicate(TrainState(jnp.int32(0), params, params, (), ()))
    why = make_explain(objective, parts=1)(
        state, {"image": np.zeros((32, 2, 2, 1), np.uint8)}, base_key(0)
    )
    assert why.startswith("the network's error is finite, up to ")
    assert "its product with the weight over t is not, for " in why
    assert why.endswith(" of 32 images, one of them at t = 3")


@pytest.mark.full
def test_a_gradient_that_fails_alone_is_followed_back_from_the_loss():
    # Sqrt(0) is 0, and its slope is infinite: b and what is before it get inf x 0
    class Root(_Network):
        between = staticmethod(lambda x: jnp.sqrt(x * 0) + x)

    why = _why(Root())
    assert why.startswith(
        "the loss is finite, its gradient is not: on the way back from the loss that of b/"
    )
    assert why.endswith(" is the first to fail, and 3 more do")


def test_a_finite_step_has_no_cause():
    assert _why(_Network()) is None


@pytest.mark.slow
def test_in_the_real_network_the_block_and_the_timestep_are_named(network_objective):
    model = UNet(
        resolution=8,
        out_channels=1,
        ch=32,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=(),
        dropout=0.1,
    )
    params = _on_host(
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,)))["params"]
    )
    params["mid_block_1"]["norm2"]["scale"] += 3e38
    objective = network_objective(model, num_timesteps=10)
    state = replicate(TrainState(jnp.int32(4), params, params, (), ()))
    batch = {"image": np.zeros((2, 8, 8, 1), np.uint8)}
    why = make_explain(objective, parts=1)(state, batch, base_key(0))
    assert "in the output of mid_block_1/norm2 (its input is finite, up to " in why
    key = jax.random.fold_in(base_key(0), 4)
    _, aux = objective.loss(params, (), (), batch, key, jnp.arange(2))
    assert why.endswith(f"for 2 of 2 images, one of them at t = {int(aux.t[0])}")
