"""Checkpoints: resuming is exact, a save is not disturbed, the right ones are kept; one sentence
for every damage."""

import io
import json
import os
import pathlib
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.checkpoints import digests, reader
from ddpm_jax.checkpoints.reader import DamagedCheckpoint
from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.data import pipeline
from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.diffusion.schedules import make_betas
from ddpm_jax.distributed import hosts
from ddpm_jax.distributed.pmap import map_step, replicate
from ddpm_jax.errors import FailureError, UsageError
from ddpm_jax.monitoring.metric_writer import MetricWriter
from ddpm_jax.monitoring.progress import Progress
from ddpm_jax.randomness import base_key
from ddpm_jax.training.ema import Average
from ddpm_jax.training.optimizer import make_learning_rate, make_optimizer
from ddpm_jax.training.options import LoopOptions
from ddpm_jax.training.state import TrainState, create
from ddpm_jax.training.step import StepOptions, make_train_step
from ddpm_jax.training.training_loop import Observers, Saving, Start, Steps, train

DAMAGE, DISK_FULL = (
    pathlib.Path(__file__).with_name(name) for name in ("damage.py", "disk_full.py")
)
CONFIG = {"model": {"ch_mult": [1, 2]}, "beta_end": None}


def _assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def _copy(tree):
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def _state(step=0, size=3):
    """A state without a model: a NamedTuple in it, as Optax's, and a tuple."""
    leaf = jnp.arange(size, dtype=jnp.float32) + step
    moments = (
        optax.ScaleByAdamState(jnp.int32(step), {"w": leaf * 2}, {"w": leaf * 3}),
        optax.EmptyState(),
    )
    return TrainState(
        jnp.int32(step), {"w": leaf}, {"w": leaf / 2}, moments, (leaf * 4, jnp.ones(2, jnp.int32))
    )


def _save(workdir, *steps, **options):
    checkpointer = Checkpointer(workdir, **({"keep_last": 3} | options))
    for step in steps:
        checkpointer.save(step, _state(step), {"batches": step}, CONFIG)
    checkpointer.close()


def _names(workdir):
    return {path.name for path in (workdir / reader.CHECKPOINTS).iterdir()}


def _steps(workdir):
    return sorted(map(int, _names(workdir)))


# Resuming


class _Run:
    """Real data and checkpoints, all that a state can hold (Adam, EMA, importance sampling), and
    draws with dropout."""

    def __init__(self, workdir, ddpm_objective):
        self.workdir = workdir
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, 4, 4, 1), np.uint8)
        source = ArraySource(images, np.zeros(40, np.int32), 1, "images")
        self.batches = pipeline.train_iterator(source, batch_size=16, seed=0)
        self.checkpointer = Checkpointer(workdir, keep_last=2)

        def apply(params, x_t, time, condition, keys):
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, x_t.shape[1:]))(keys)
            hidden = jnp.where(keep, jnp.tanh(x_t * params["a"][None] + params["b"][None]), 0.0)
            return hidden * params["c"][None] + time[:, None, None, None] * params["d"][None]

        objective = ddpm_objective(
            apply,
            Chain(make_betas("linear", 4, beta_start=0.1, beta_end=0.5)),
            timestep_sampling="importance",
        )
        rate = make_learning_rate(1e-2, warmup_steps=4, decay="constant", num_steps=0)
        optimizer = make_optimizer("adam", rate)
        params = {
            name: jnp.full((4, 4, 1), value)
            for name, value in zip("abcd", (0.5, 0.1, 1.0, -0.1), strict=True)
        }
        self.state = create(params, optimizer, objective)
        self.step = map_step(
            make_train_step(
                objective, optimizer, rate, StepOptions(ema=Average(0.9), clip_norm=1.0)
            )
        )
        if self.checkpointer.latest_step() is not None:
            self.state, position = self.checkpointer.restore(self.state)
            self.batches.set_state(position)

    def train(self, num_steps):
        """Returns the state after `num_steps` and the batch that would come next."""
        options = LoopOptions(num_steps, batch_size=16, log_every=5, sample_every=0, save_every=4)
        with MetricWriter(self.workdir, resume_step=int(self.state.step)) as writer:
            outcome = train(
                Start(self.state),
                Steps(self.step),
                self.batches,
                base_key(5),
                options=options,
                saving=Saving(self.checkpointer, CONFIG),
                observers=Observers(writer, Progress(num_steps, file=io.StringIO())),
            )
        following = next(self.batches)
        self.batches.close()
        self.checkpointer.close()
        return outcome.state, following


@pytest.mark.full
def test_stopping_and_resuming_changes_no_bit(tmp_path, ddpm_objective):
    through, next_through = _Run(tmp_path / "through", ddpm_objective).train(22)
    _Run(tmp_path / "stopped", ddpm_objective).train(11)
    again = _Run(tmp_path / "stopped", ddpm_objective)
    assert int(again.state.step) == 11
    resumed, next_resumed = again.train(22)
    _assert_equal(resumed, through)
    _assert_equal(next_resumed, next_through)
    assert np.all(through.objective_state.counts >= 10), "importance sampling has begun"
    assert not np.array_equal(through.params["a"], through.ema_params["a"])
    # and what is on disk is that state
    _assert_equal(Checkpointer(tmp_path / "stopped", keep_last=1).restore(through)[0], through)


def test_a_save_holds_the_moment_it_was_asked_for_whatever_training_does_meanwhile(tmp_path):
    # so large that the files are still being written when the buffers are taken over
    size = 2_000_000

    def step(state, batch, key):
        return jax.tree.map(lambda leaf: leaf * 1.5 + 1, state), {}

    checkpointer, step = Checkpointer(tmp_path, keep_last=5), map_step(step)
    state = replicate(
        {"params": jnp.arange(size, dtype=jnp.float32), "ema_params": jnp.ones((size,))}
    )
    batch, saved = {"x": np.zeros((1, 1))}, {}
    for n in range(1, 4):
        state, _ = step(state, batch, base_key(0))
        saved[n] = _copy(state)
        checkpointer.save(n, state, {"batches": n}, CONFIG)
        for _ in range(5):
            state, _ = step(state, batch, base_key(0))
    checkpointer.wait()
    for n, expected in saved.items():
        restored, position = checkpointer.restore(state, n)
        _assert_equal(restored, expected)
        assert position == {"batches": n}
    checkpointer.close()


def test_state_position_and_config_come_back_as_one(tmp_path):
    _save(tmp_path, 5, 10)
    checkpointer = Checkpointer(tmp_path, keep_last=3)
    assert checkpointer.latest_step() == 10
    for step in (5, 10):
        state, position = checkpointer.restore(jax.eval_shape(_state), step)
        _assert_equal(state, _state(step))
        assert jax.tree.structure(state) == jax.tree.structure(_state())
        assert position == {"batches": step}
        assert reader.read_config(tmp_path, step) == CONFIG
    assert int(checkpointer.restore(_state())[0].step) == 10, "the newest by default"
    weights = reader.read_weights(tmp_path, 5, {"ema_params": jax.eval_shape(_state).ema_params})
    _assert_equal(weights, {"ema_params": _state(5).ema_params})
    checkpointer.close()


def test_the_last_ones_and_every_so_many_are_kept(tmp_path):
    _save(tmp_path / "last", 1, 2, 3, 4, 5, keep_last=2)
    assert _steps(tmp_path / "last") == [4, 5]
    _save(tmp_path / "every", *range(2, 17, 2), keep_last=1, keep_every=6)
    assert _steps(tmp_path / "every") == [6, 12, 16]
    _save(tmp_path / "every", 18, 20, 22, keep_last=1, keep_every=6)
    assert _steps(tmp_path / "every") == [6, 12, 18, 22], "also over a resume"


def test_what_a_killed_save_left_is_no_checkpoint_and_is_cleared_away(tmp_path):
    _save(tmp_path, 5)
    half = tmp_path / reader.CHECKPOINTS / "10.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / reader.CHECKPOINTS / "5", half)
    assert reader.find_step(tmp_path) == 5
    _save(tmp_path, 15)
    assert _steps(tmp_path) == [5, 15]


@pytest.mark.parametrize("name", ["²", "１", "010"])
def test_a_folder_that_is_not_called_by_a_step_is_no_checkpoint(tmp_path, name):
    _save(tmp_path, 5)
    shutil.copytree(tmp_path / reader.CHECKPOINTS / "5", tmp_path / reader.CHECKPOINTS / name)
    assert reader.find_step(tmp_path) == 5
    _save(tmp_path, 15)
    assert reader.saved_steps(tmp_path) == [5, 15]
    assert (tmp_path / reader.CHECKPOINTS / name).is_dir()


# What a user reads


def test_a_missing_empty_or_foreign_directory_is_named(tmp_path):
    with pytest.raises(
        UsageError, match=r"no directory .*nowhere: name the --workdir of a training run"
    ):
        reader.find_step(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no checkpoint: checkpoints/STEP is expected"):
        reader.find_step(tmp_path)
    (tmp_path / "photos" / reader.CHECKPOINTS / "7").mkdir(parents=True)
    assert reader.find_step(tmp_path / "photos") == 7
    for read in (
        lambda: reader.read_config(tmp_path / "photos", 7),
        lambda: Checkpointer(tmp_path / "photos", keep_last=1).restore(_state()),
        lambda: Checkpointer(tmp_path / "photos", keep_last=1).resume(_state(), pytest.fail),
    ):
        with pytest.raises(
            UsageError, match="not written by ddpm_jax: it has no state, data or config"
        ):
            read()


def test_a_step_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    _save(tmp_path, 5, 10)
    with pytest.raises(UsageError, match="no checkpoint of step 7: choose one of 5, 10"):
        reader.find_step(tmp_path, 7)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"w": jnp.zeros(4)}, r"params/w is \(3,\) there and \(4,\) in this model"),
        ({"v": jnp.zeros(3)}, r"params/v is absent there and \(3,\) in this model, and 1 more"),
        (
            {"w": jnp.zeros(3), "v": jnp.zeros(3)},
            r"params/v is absent there and \(3,\) in this model\.",
        ),
        ({}, r"params/w is \(3,\) there and absent in this model"),
    ],
)
def test_another_architecture_is_told_by_its_first_difference(tmp_path, params, sentence):
    _save(tmp_path, 5)
    with pytest.raises(UsageError, match=f"of another architecture: {sentence}"):
        Checkpointer(tmp_path, keep_last=1).restore(_state()._replace(params=params))
    if params:
        with pytest.raises(UsageError, match=f"of another architecture: {sentence}"):
            reader.read_weights(tmp_path, 5, {"params": params})


@pytest.mark.full
def test_any_damaged_file_gives_a_sentence_or_the_right_state(tmp_path, run_python):
    results = json.loads(run_python(DAMAGE, tmp_path).stdout)
    for damage in ("truncate", "garble", "flip", "unlink"):
        refused = {item for how, item, outcome in results if how == damage and outcome != "right"}
        assert refused == {"state", "data", "config"}
    sentence = rf"{re.escape(str(tmp_path))}\S* is damaged \([^\n]*\.$"
    strange = [
        result for result in results if result[2] != "right" and not re.search(sentence, result[2])
    ]
    assert not strange


@pytest.mark.parametrize("item", [reader.STATE, reader.DATA, reader.CONFIG])
def test_a_missing_item_is_named(tmp_path, item):
    _save(tmp_path, 5)
    shutil.rmtree(tmp_path / reader.CHECKPOINTS / "5" / item)
    with pytest.raises(
        DamagedCheckpoint, match=rf"is damaged \(it has no {item}\): there is no other"
    ):
        Checkpointer(tmp_path, keep_last=1).restore(_state())


def _damage(workdir, step, file=f"{reader.STATE}/_METADATA"):
    path = workdir / reader.CHECKPOINTS / str(step) / file
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_checkpoint_is_named_with_the_newest_that_is_whole(tmp_path):
    _save(tmp_path, 5, 10, 15)
    _damage(tmp_path, 15)
    _damage(tmp_path, 10, "config/metadata")
    sentence = r"/15 is damaged \(its file state/_METADATA is not what was written\): the newest one that is "
    with pytest.raises(
        DamagedCheckpoint,
        match=sentence + r"whole is that of step 5, .* take with --ckpt_step 5\.$",
    ):
        reader.read_weights(tmp_path, 15, {"params": _state().params})
    with pytest.raises(
        DamagedCheckpoint, match=r"10 is damaged \(its file config/metadata .* of step 5, "
    ):
        reader.read_config(tmp_path, 10)


def test_a_run_resumes_from_the_newest_whole_checkpoint_and_keeps_the_damaged_under_another_name(
    tmp_path,
):
    _save(tmp_path, 5, 10, 15)
    _damage(tmp_path, 15)
    shutil.rmtree(tmp_path / reader.CHECKPOINTS / "10" / reader.DATA)
    reports = []
    checkpointer = Checkpointer(tmp_path, keep_last=2)
    state, position = checkpointer.resume(_state(), reports.append)
    _assert_equal(state, _state(5))
    assert position == {"batches": 5}
    assert len(reports) == 2
    assert re.search(
        r"step 15 in .* is damaged \(its file state/_METADATA is not what was written\); it is kept as 15\.damaged, "
        r"and the run resumes from the one of step 5$",
        reports[0],
    )
    assert "step 10" in reports[1]
    assert "(it has no data)" in reports[1]
    # Those steps can be saved again, and what was set aside is neither counted nor cleared away.
    for step in (10, 15):
        checkpointer.save(step, _state(step), {"batches": step}, CONFIG)
    checkpointer.close()
    assert _names(tmp_path) == {"10", "15", "10.damaged", "15.damaged"}
    again = Checkpointer(tmp_path, keep_last=2)
    _assert_equal(again.resume(_state(), pytest.fail)[0], _state(15))
    again.close()
    _damage(tmp_path, 15)
    Checkpointer(tmp_path, keep_last=2).resume(_state(), reports.append)
    assert _names(tmp_path) == {"10", "10.damaged", "15.damaged", "15.damaged1"}


def test_a_process_that_another_one_moves_the_damaged_checkpoint_for_can_save_that_step_again(
    tmp_path, monkeypatch
):
    _save(tmp_path, 5, 10)
    _damage(tmp_path, 10)
    folder = tmp_path / reader.CHECKPOINTS

    def wait_for_all(name):
        if name == "a damaged checkpoint is set aside":
            # what the first process has done by then, and not before
            (folder / "10").rename(folder / "10.damaged")

    checkpointer = Checkpointer(tmp_path, keep_last=2)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_index", lambda: 1)
        patch.setattr(hosts, "wait_for_all", wait_for_all)
        checkpointer.resume(_state(), lambda sentence: None)
    assert checkpointer.latest_step() == 5
    checkpointer.save(10, _state(10), {"batches": 10}, CONFIG)
    checkpointer.close()
    assert _names(tmp_path) == {"5", "10", "10.damaged"}


def test_where_no_checkpoint_is_whole_nothing_is_moved(tmp_path):
    _save(tmp_path, 5, 10)
    _damage(tmp_path, 5)
    _damage(tmp_path, 10)
    with pytest.raises(
        FailureError,
        match=r"^No checkpoint in .* is whole \(10: its file .*; 5: its .*\): put back",
    ):
        Checkpointer(tmp_path, keep_last=2).resume(_state(), pytest.fail)
    assert _names(tmp_path) == {"5", "10"}


def test_the_digests_are_those_that_sha256sum_checks(tmp_path):
    _save(tmp_path, 5)
    for item in reader.ITEMS:
        folder = tmp_path / reader.CHECKPOINTS / "5" / item
        subprocess.run(
            ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True
        )


def test_a_checkpoint_from_before_there_were_digests_is_read_with_a_warning(tmp_path, capsys):
    _save(tmp_path, 5)
    for item in reader.ITEMS:
        (tmp_path / reader.CHECKPOINTS / "5" / item / digests.SUMS).unlink()
    for _ in range(2):
        _assert_equal(
            Checkpointer(tmp_path, keep_last=1).resume(_state(), pytest.fail)[0], _state(5)
        )
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == len(reader.ITEMS)  # once each
    assert all(
        re.match(r"warning: the checkpoint .*/5 has no \w+/SHA256SUMS, ", warning)
        for warning in warnings
    )


def _edit_sums(change):
    def edit(state):
        sums = state / digests.SUMS
        sums.write_text(change(sums.read_text()))

    return edit


def _substitute(name, make):
    def replace(state):
        (state / name).unlink(missing_ok=True)
        make(state / name)

    return replace


NUMBERS = "0" * 64
CHANGES = {
    "no digest": (_edit_sums(lambda text: ""), "its file state/SHA256SUMS is not what was written"),
    "not all digests": (
        _edit_sums(lambda text: text[: text.index("\n") + 1]),
        "state/.* is not among those",
    ),
    "half a line": (
        _edit_sums(lambda text: text[:-70]),
        "state/SHA256SUMS is not what was written|not among those",
    ),
    "a device": (
        _edit_sums(lambda text: f"{text}{NUMBERS}  /dev/zero\n"),
        "its file state//dev/zero is missing",
    ),
    "a path outside": (
        _edit_sums(lambda text: f"{text}{NUMBERS}  ../../../secret\n"),
        "secret is missing",
    ),
    "an escape": (
        _edit_sums(lambda text: f"{text}{NUMBERS}  a\x1b[2Jb\n"),
        r"a\\x1b\[2Jb is missing",
    ),
    "another file": (
        _substitute("d/added", lambda path: path.write_text("")),
        "state/d/added is not among those",
    ),
    "a pipe": (
        _substitute("_METADATA", os.mkfifo),
        "its state/_METADATA is a named pipe, and a file is expected",
    ),
    "a link": (
        _substitute("_METADATA", lambda path: path.symlink_to("/dev/zero")),
        "its state/_METADATA is a link",
    ),
    "a pipe for digests": (
        _substitute("SHA256SUMS", os.mkfifo),
        "its state/SHA256SUMS is a named pipe",
    ),
    "a pipe above": (
        _substitute("../_CHECKPOINT_METADATA", os.mkfifo),
        "its 5/_CHECKPOINT_METADATA is a named pipe",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_files_in_the_checkpoint_are_read_and_every_one_has_its_digest(tmp_path, change):
    _save(tmp_path, 5)
    state = tmp_path / reader.CHECKPOINTS / "5" / reader.STATE
    (state / ".DS_Store").write_text("what a system leaves")
    reader.check_whole(state.parent)
    make, reason = CHANGES[change]
    make(state)
    for read in (
        lambda: reader.read_weights(tmp_path, 5, {"params": _state().params}),
        lambda: Checkpointer(tmp_path, keep_last=1).restore(_state()),
    ):
        with pytest.raises(FailureError, match=rf"damaged.*{reason}") as caught:
            read()
        assert str(caught.value).isprintable()


def _write_data(workdir, step, text):
    """Puts a text in place of a position in the data, with the digest that it ought to have."""
    item = workdir / reader.CHECKPOINTS / str(step) / reader.DATA
    (item / digests.SUMS).unlink()
    (item / "metadata").write_text(text)
    digests.write(item)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("null", "it is null, and an object is expected"),
        ("1.5", "it is 1.5, and an object"),
        ("true", "it is true, and an object"),
        ("[]", r"it is \[\], and an object"),
        ("{}", "it has no batches"),
        ('{"batches": 9}', "its batches is 9, and 10 is expected"),
        ('{"batches": 10.0}', "its batches is 10.0, and 10"),
        ('{"batches": true}', "its batches is true"),
        ('{"batches": ' + "9" * 60 + "}", "it holds a whole number of 60 digits"),
        ('{"batches": 10, "seed": null}', "its seed is null"),
        ("[" * 200_000, "it is nested too deeply"),
    ],
)
def test_a_position_in_the_data_that_is_not_that_of_the_step_is_damage(tmp_path, text, reason):
    _save(tmp_path, 5, 10)
    _write_data(tmp_path, 10, text)
    reports = []
    state, position = Checkpointer(tmp_path, keep_last=2).resume(_state(), reports.append)
    _assert_equal(state, _state(5))
    assert position == {"batches": 5}
    assert len(reports) == 1
    assert re.search(
        rf"step 10 in .* is damaged \(in its data, {reason}.*\); it is kept as 10\.damaged",
        reports[0],
    )


@pytest.mark.full
def test_a_full_disk_is_told_and_the_checkpoint_before_survives(tmp_path, run_python):
    result = run_python(DISK_FULL, tmp_path)
    assert result.stderr == ""
    sentences = result.stdout.splitlines()
    assert len(sentences) >= 1
    assert all(
        f"Saving a checkpoint in {tmp_path / 'checkpoints'} failed: " in sentence
        for sentence in sentences
    )
    assert all("The last good checkpoint is that of step 1." in sentence for sentence in sentences)
    assert f"{tmp_path / 'checkpoints'} failed: File too large. The last good" in sentences[0]
    assert sentences[0].endswith("Put that right and give the same command again to resume.")
    template = {"params": jax.ShapeDtypeStruct((1_000_000,), jnp.float32)}
    template |= {f"more{i}": jax.ShapeDtypeStruct((300_000,), jnp.float32) for i in range(9)}
    checkpointer = Checkpointer(tmp_path, keep_last=1)
    state, position = checkpointer.restore(template)
    np.testing.assert_array_equal(
        state["params"], np.random.default_rng(1).random(1_000_000, np.float32)
    )
    assert position == {"batches": 1}
    checkpointer.close()


def test_checkpoints_that_are_removed_under_a_running_job_are_told_and_single_ones_not_missed(
    tmp_path,
):
    checkpointer = Checkpointer(tmp_path / "run", keep_last=2)
    for step in (5, 10):
        checkpointer.save(step, _state(step), {"batches": step}, CONFIG)
        checkpointer.wait()
    shutil.rmtree(tmp_path / "run" / reader.CHECKPOINTS / "5")
    for step in (15, 20):
        checkpointer.save(step, _state(step), {"batches": step}, CONFIG)
        checkpointer.wait()
    assert _steps(tmp_path / "run") == [15, 20]
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(
        FailureError,
        match=r"run/checkpoints was removed while the run was under way, and its checkpoints",
    ):
        checkpointer.save(25, _state(25), {"batches": 25}, CONFIG)
    assert not (tmp_path / "run").exists()
    checkpointer.close()


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / reader.CHECKPOINTS).write_text("a file stands where the folder should")
    with pytest.raises(FailureError, match=r"Cannot write checkpoints to .*checkpoints: "):
        Checkpointer(tmp_path, keep_last=1)
    with pytest.raises(UsageError, match="keep_last is 0"):
        Checkpointer(tmp_path, keep_last=0)


@pytest.mark.parametrize("name", ["[1] first", "a\\b", "\udcff"])
def test_a_directory_in_whose_name_checkpoints_would_be_lost_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    for use in (lambda path: Checkpointer(path, keep_last=1), reader.find_step):
        with pytest.raises(
            UsageError, match=r"Checkpoints cannot be kept in .*: rename it, or name another"
        ):
            use(tmp_path / name)
    assert not list((tmp_path / name).iterdir())


def test_in_a_directory_of_any_other_name_checkpoints_are_found_again(tmp_path):
    for name in ("a b", "a%20b", "#?*|", "日本", "a\nb", "{x}", "$x$", "a[b", "..a"):
        writer = Checkpointer(tmp_path / name, keep_last=1)
        writer.save(5, {"params": np.arange(3.0, dtype=np.float32)}, {"batches": 5}, {"seed": 0})
        writer.close()
        found = reader.read_weights(tmp_path / name, 5, {"params": np.zeros(3, np.float32)})
        np.testing.assert_array_equal(found["params"], [0, 1, 2])
