"""Several steps in a dispatch, explicit copies, one compilation, traces: what makes the loop fast
changes nothing."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.distributed.pmap import map_step, replicate, several, shard, to_devices
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.models.unet import UNet
from ddpm_jax.monitoring import records
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.profiling import Trace, parse_steps
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.randomness import base_key
from ddpm_jax.training.ema import Average
from ddpm_jax.training.options import LoopOptions
from ddpm_jax.training.state import create
from ddpm_jax.training.step import StepOptions, make_train_step
from ddpm_jax.training.training_loop import Observers, Saving, Start, Steps, train

BATCH = 8
COMPILED = "/jax/core/compile/backend_compile_duration"


class _Run:
    """A linear model with dropout in the real loop; keeps what was saved and drawn, and the steps
    of each call."""

    def __init__(self, linear, poisoned=None):
        objective = linear.objective(dropout=0.3)._replace(init=lambda params: jnp.zeros(BATCH))
        optimizer = optax.adam(1e-2)
        step = make_train_step(
            objective, optimizer, optax.constant_schedule(1e-2), StepOptions(ema=Average(0.9))
        )
        self.state = create(linear.params(), optimizer, objective)
        self._step, self._steps = map_step(step), map_step(several(step))
        self._linear, self._fetched, self._poisoned = linear, 0, poisoned
        self.key = base_key(0)
        self.saved, self.drawn, self.calls = [], [], []

    def __next__(self):
        self._fetched += 1
        batch = self._linear.batch(BATCH, seed=self._fetched)
        return batch | ({"y": batch["y"] * np.nan} if self._fetched == self._poisoned else {})

    def get_state(self):
        return {"batches": self._fetched}

    def save(self, step, state, data_state, config):
        self.saved.append((step, int(state.step), data_state["batches"], jax.device_get(state)))

    def wait(self):
        pass

    def on_sample(self, step, state):
        self.drawn.append((step, jax.device_get(state.ema_params)))

    def _count(self, count, function):
        def called(*arguments):
            self.calls.append(count)
            return function(*arguments)

        return called

    def train(self, workdir, trace=None, **options):
        """Returns the state on the host and the records; options are those of the loop."""
        options = LoopOptions(
            **{"batch_size": BATCH, "log_every": 3, "sample_every": 0, "save_every": 100} | options
        )
        with MetricWriter(workdir) as writer:
            outcome = train(
                Start(self.state),
                Steps(self._count(1, self._step), self._count(options.steps_per_call, self._steps)),
                self,
                self.key,
                options=options,
                saving=Saving(self, {}),
                observers=Observers(
                    writer,
                    Progress(options.num_steps, file=io.StringIO()),
                    self.on_sample,
                    trace=trace,
                ),
            )
        return jax.device_get(outcome.state), records.read(workdir)


def _assert_equal(ours, theirs):
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def _of_the_model(written):
    """The records without what the clock says."""
    names = ("step", "loss", "loss_q", "grad_norm", "learning_rate")
    return [{name: record[name] for name in names} for record in written]


@pytest.mark.full
@pytest.mark.parametrize("steps_per_call", [4, 5, 20])
def test_several_steps_in_a_call_do_what_single_ones_do_and_every_cadence_is_kept(
    tmp_path, linear, steps_per_call
):
    options = {"num_steps": 22, "sample_every": 10, "save_every": 8}
    single, several_at_once = _Run(linear), _Run(linear)
    expected, their_records = single.train(tmp_path / "1", **options)
    state, our_records = several_at_once.train(
        tmp_path / "K", steps_per_call=steps_per_call, **options
    )
    _assert_equal(state, expected)
    assert _of_the_model(our_records) == _of_the_model(their_records)
    assert [record["step"] for record in our_records] == [*range(3, 22, 3), 22]
    assert [(step, n, batches) for step, n, batches, _ in several_at_once.saved] == [
        (n, n, n) for n in (8, 16, 22)
    ]
    _assert_equal(several_at_once.saved, single.saved)
    assert [step for step, _ in several_at_once.drawn] == [10, 20, 22]
    _assert_equal(several_at_once.drawn, single.drawn)
    assert sum(several_at_once.calls) == 22
    assert set(several_at_once.calls) == ({1} if steps_per_call == 20 else {1, steps_per_call})


def test_where_nothing_is_due_between_them_all_calls_are_whole(tmp_path, linear):
    run = _Run(linear)
    run.train(tmp_path, num_steps=24, sample_every=12, save_every=8, steps_per_call=4)
    assert run.calls == [4] * 6


def test_a_loss_that_is_not_finite_is_named_by_its_own_step(tmp_path, linear):
    run = _Run(linear, poisoned=6)
    with pytest.raises(
        FailureError, match=r"became nan at step 6\. The checkpoint of step 4 is kept"
    ):
        run.train(tmp_path, num_steps=12, save_every=4, steps_per_call=4)


@pytest.mark.slow
def test_four_steps_of_the_network_in_one_program_are_four_steps_bit_for_bit(network_objective):
    model = UNet(
        resolution=8,
        out_channels=1,
        ch=32,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=(8,),
        dropout=0.2,
    )
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,)))["params"]
    objective = network_objective(model, num_timesteps=10)
    optimizer = optax.adam(1e-3)
    step = make_train_step(
        objective, optimizer, optax.constant_schedule(1e-3), StepOptions(clip_norm=1.0)
    )
    rng = np.random.default_rng(0)
    batches = [{"image": rng.integers(0, 256, (4, 8, 8, 1), np.uint8)} for _ in range(4)]
    params = jax.tree.map(np.asarray, params)

    def start():
        return replicate(create(jax.tree.map(jnp.array, params), optimizer, objective))

    state, single, losses = start(), map_step(step), []
    for batch in batches:
        state, metrics = single(state, to_devices([batch]), base_key(0))
        losses.append(metrics["loss"])
    together, metrics = map_step(several(step))(start(), to_devices(batches), base_key(0))
    _assert_equal(metrics["loss"], np.asarray(losses))
    _assert_equal(jax.device_get(together), jax.device_get(state))


@contextlib.contextmanager
def _compilations():
    """Yields a list that grows by one entry for each program that XLA compiles, or fetches from its
    cache."""
    compiled = []

    def note(event, seconds, **_):
        if event == COMPILED:
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.full
@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_nothing_compiles_after_the_first_call_the_first_grid_and_the_first_save(
    tmp_path, linear, steps_per_call
):
    run, double, counts = (
        _Run(linear),
        jax.jit(lambda params: jax.tree.map(lambda x: 2 * x, params)),
        [],
    )
    fetch, draw = run.__class__.__next__, run.on_sample

    class Counting(_Run):
        def __next__(self):
            counts.append(len(compiled))  # before the call it is fetched for
            return fetch(self)

    run.__class__ = Counting
    run.on_sample = lambda step, state: draw(
        step, state._replace(ema_params=double(state.ema_params))
    )
    with _compilations() as compiled:
        run.train(
            tmp_path,
            num_steps=40,
            sample_every=8,
            save_every=8,
            steps_per_call=steps_per_call,
            log_every=1,
        )
        total = len(compiled)
    assert [step for step, _ in run.drawn] == [8, 16, 24, 32, 40]
    assert counts[0] < counts[steps_per_call] == counts[7], (
        "the first call compiles, the others of its kind do not"
    )
    assert counts[7] < counts[8], "the first grid compiles"
    assert counts[8] == counts[-1] == total


@pytest.mark.full
@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_the_loop_copies_nothing_to_or_from_a_device_unasked(tmp_path, linear, steps_per_call):
    run = _Run(linear)
    run.state = replicate(run.state)
    on_host = shard(run._linear.batch(BATCH))
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed"):
        run._step(run.state, on_host, run.key)
    with jax.transfer_guard("disallow"):
        run.train(tmp_path, num_steps=9, save_every=6, steps_per_call=steps_per_call, log_every=2)


@pytest.mark.full
@pytest.mark.parametrize(("steps_per_call", "traced"), [(1, ["4", "5"]), (3, ["6"])])
def test_a_trace_holds_the_steps_asked_for_and_lies_where_tensorboard_looks(
    tmp_path, linear, steps_per_call, traced
):
    run = _Run(linear)
    run.train(
        tmp_path / "run",
        num_steps=9,
        steps_per_call=steps_per_call,
        trace=Trace(tmp_path, first=4, last=5),
    )
    (events,) = (tmp_path / "plugins" / "profile").glob("*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(events))
    stats = [
        dict(e.stats)
        for plane in data.planes
        for line in plane.lines
        for e in line.events
        if e.name == "train"
    ]
    assert [str(s["step_num"]) for s in stats] == traced


@pytest.mark.full
def test_an_interrupted_run_keeps_the_trace_it_has(tmp_path, linear):
    run = _Run(linear, poisoned=5)
    with pytest.raises(FailureError):
        run.train(tmp_path / "run", num_steps=9, trace=Trace(tmp_path, first=4, last=8))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize("text", ["", "5", "5:", ":5", "0:3", "5:4", "a:b", "-1:3", "1:2:3"])
def test_what_is_no_range_of_steps_is_refused(text):
    with pytest.raises(UsageError, match=r"give the first and the last step to trace, as in 10:12"):
        parse_steps(text)
    assert parse_steps("4:4") == (4, 4)
