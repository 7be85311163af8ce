"""The stream of batches is a function of the seed, sharded and seekable.

Examples carry their row in their pixels.
"""

import json
import time

import numpy as np
import pytest
from scipy import stats

from ddpm_jax.data import in_memory, pipeline
from ddpm_jax.errors import UsageError


def _source(count, fingerprint="rows"):
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 1)
    )
    return in_memory.ArraySource(
        np.ascontiguousarray(images), np.arange(count, dtype=np.int32), count, fingerprint
    )


class _Slow:
    """The same rows without a `gather`, as a source that reads one example at a time."""

    def __init__(self, source):
        self._source = source
        self.image_shape, self.num_classes = source.image_shape, source.num_classes
        self.fingerprint = source.fingerprint

    def __len__(self):
        return len(self._source)

    def __getitem__(self, i):
        return self._source[i]


def _take(source, count, state=None, **options):
    iterator = pipeline.train_iterator(source, **({"seed": 0} | options))
    if state is not None:
        iterator.set_state(state)
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def _rows(batches):
    return np.concatenate([batch["label"] for batch in batches])


def test_batches_are_uint8_images_with_their_labels():
    for batch in _take(_source(10), 5, batch_size=4):
        assert batch["image"].shape == (4, 2, 2, 1)
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 25])
def test_every_epoch_has_each_example_once_and_an_order_of_its_own(batch_size):
    count, epochs = 10, 6
    rows = _rows(_take(_source(count), -(-count * epochs // batch_size), batch_size=batch_size))
    orders = [tuple(rows[e * count : (e + 1) * count]) for e in range(epochs)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len(set(orders)) == epochs
    assert tuple(range(count)) not in orders


def test_a_single_example_can_be_batched():
    assert _rows(_take(_source(1), 2, batch_size=3)).tolist() == [0] * 6


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_the_parts_of_all_processes_make_up_the_global_batch(process_count, slow):
    source = _source(22)
    whole = _take(source, 9, batch_size=8)
    shards = [
        _take(
            _Slow(source) if slow else source,
            9,
            batch_size=8,
            process_index=p,
            process_count=process_count,
        )
        for p in range(process_count)
    ]
    for n in range(9):
        for key in ("image", "label"):
            np.testing.assert_array_equal(
                np.concatenate([shard[n][key] for shard in shards]), whole[n][key]
            )


def test_the_stream_does_not_depend_on_threads_or_prefetching():
    whole = _rows(_take(_source(50), 30, batch_size=4))
    for threads, prefetch in [(0, 0), (1, 1), (4, 9)]:
        rows = _rows(_take(_source(50), 30, batch_size=4, num_threads=threads, prefetch=prefetch))
        np.testing.assert_array_equal(rows, whole)


def test_seeds_give_different_streams_also_an_epoch_apart():
    """Drawn by seed + epoch, epoch e + 1 of seed s would be epoch e of seed s + 1."""
    count = 30
    epochs = {
        seed: _rows(_take(_source(count), 3, batch_size=count, seed=seed)).reshape(3, count)
        for seed in range(3)
    }
    assert len({tuple(order) for orders in epochs.values() for order in orders}) == 9


@pytest.mark.parametrize("seed", [0, 2**32, 2**63])
def test_any_seed_from_zero_on_will_do(seed):
    assert len(_take(_source(5), 1, batch_size=2, seed=seed)) == 1


@pytest.mark.parametrize("position", [0, 1, 5, 12])
@pytest.mark.parametrize("prefetch", [0, 8])
def test_resuming_hands_out_what_an_uninterrupted_run_would(position, prefetch):
    source, options = _source(22), {"batch_size": 8, "num_threads": 2, "prefetch": prefetch}
    whole = _take(source, 20, **options)
    iterator = pipeline.train_iterator(source, seed=0, **options)
    for _ in range(position):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    iterator.close()
    assert state == {"batches": position, "seed": 0, "batch_size": 8, "fingerprint": "rows"}
    for ours, theirs in zip(_take(source, 5, state, **options), whole[position:], strict=False):
        for key in ("image", "label"):
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_an_iterator_under_way_can_be_sent_back():
    iterator = pipeline.train_iterator(_source(22), batch_size=4, seed=1)
    first = [next(iterator) for _ in range(6)]
    state = iterator.get_state()
    next(iterator)
    iterator.set_state(state | {"batches": 2})
    again = [next(iterator) for _ in range(4)]
    assert iterator.get_state() == state
    iterator.close()
    np.testing.assert_array_equal(_rows(again), _rows(first[2:]))


def test_the_number_of_processes_may_change_on_resume():
    source = _source(22)
    state = {"batches": 5, "seed": 0, "batch_size": 8, "fingerprint": "rows"}
    shards = [
        _take(source, 1, state, batch_size=8, process_index=p, process_count=2)[0] for p in range(2)
    ]
    whole = _take(source, 6, batch_size=8)[5]
    np.testing.assert_array_equal(
        np.concatenate([shard["label"] for shard in shards]), whole["label"]
    )


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 1), ("batch_size", 4), ("fingerprint", "others")]
)
def test_the_state_of_another_stream_is_refused(field, value):
    iterator = pipeline.train_iterator(_source(22), batch_size=8, seed=0)
    state = iterator.get_state() | {field: value}
    with pytest.raises(
        UsageError, match=f"written with data {field} {value!r}, but this run has .*workdir"
    ):
        iterator.set_state(state)
    assert next(iterator)["label"].shape == (8,)
    iterator.close()


def test_a_closed_iterator_hands_out_nothing():
    iterator = pipeline.train_iterator(_source(22), batch_size=8, seed=0)
    next(iterator)
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"batch_size": 6, "process_count": 4},
            "batch_size=6 should be a positive multiple of .*processes, 4",
        ),
        ({"batch_size": 0}, "batch_size=0 should be a positive multiple"),
        (
            {"batch_size": 4, "process_index": 2, "process_count": 2},
            r"process_index=2 should be in 0\.\.1",
        ),
        ({"batch_size": 4, "seed": -1}, "seed=-1 should be at least 0"),
    ],
)
def test_wrong_arguments_are_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        pipeline.train_iterator(_source(5), **({"seed": 0} | options))
    if "seed" not in options:
        with pytest.raises(UsageError, match=sentence):
            pipeline.eval_batches(_source(5), **options)


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize(
    ("count", "num_images"), [(10, None), (8, None), (3, None), (10, 5), (10, 99), (17, 17)]
)
def test_evaluation_sees_everything_once_in_order(count, num_images, process_count):
    shards = [
        list(
            pipeline.eval_batches(
                _source(count),
                batch_size=4,
                process_index=p,
                process_count=process_count,
                num_images=num_images,
            )
        )
        for p in range(process_count)
    ]
    total = min(count, num_images or count)
    seen = []
    for parts in zip(*shards, strict=True):  # every process has the same number of batches
        for batch, mask in parts:
            assert batch["image"].shape == (4 // process_count, 2, 2, 1)
            assert (batch["image"].dtype, batch["label"].dtype, mask.dtype) == (
                np.uint8,
                np.int32,
                bool,
            )
            assert not batch["image"][~mask].any()
            seen += batch["image"][mask, 0, 0, 0].tolist()
    assert seen == list(range(total))
    assert len(shards[0]) == -(-total // 4)


def test_evaluation_that_stops_early_reads_no_further():
    class Counted(_Slow):
        read = 0

        def __getitem__(self, i):
            self.read += 1
            time.sleep(0.001)
            return super().__getitem__(i)

    source = Counted(_source(200))
    batches = pipeline.eval_batches(source, batch_size=2)
    next(batches)
    batches.close()
    time.sleep(0.05)  # for the reads under way
    read = source.read
    time.sleep(0.05)
    assert 0 < source.read == read < 200
    assert next(batches, None) is None


def test_the_order_that_checkpoints_rely_on_has_not_changed():
    """A golden of our own output: otherwise resumed runs would continue in another order.

    If this must change, say so in the changelog and put the new order here.
    """
    rows = _rows(_take(_source(10), 2, batch_size=10, seed=1234))
    assert rows.tolist() == [0, 2, 5, 3, 4, 1, 7, 6, 8, 9, 2, 0, 4, 6, 9, 5, 7, 3, 1, 8]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_place_of_an_epoch_is_equally_likely_for_every_example(seed):
    """Pearson's chi-squared test of many epochs; false alarms have odds of 1 : 5,000."""
    count, epochs = 6, 600
    rows = _rows(_take(_source(count), epochs, batch_size=count, seed=seed)).reshape(epochs, count)
    seen = np.array([np.bincount(rows[:, place], minlength=count) for place in range(count)])
    # Rows and columns have fixed sums: (count - 1)² degrees of freedom, and the factor makes the
    # mean of it that.
    statistic = np.sum((seen - epochs / count) ** 2) / (epochs / count) * (count - 1) / count
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], (count - 1) ** 2)
    assert low < statistic < high
