"""Captions: numbers and texts, and which of them an example of a run has."""

import numpy as np
import pytest
from scipy import stats

from ddpm_jax.data import captions, in_memory, pipeline, sources
from ddpm_jax.errors import UsageError

TEXTS = (("a", "b", "c"), ("d",), ("b", "e"), ("a",))


def _source(texts=TEXTS, fingerprint="rows"):
    count = len(texts)
    images = np.zeros((count, 2, 2, 1), np.uint8) + np.arange(count, dtype=np.uint8).reshape(
        -1, 1, 1, 1
    )
    labels = np.arange(count, dtype=np.int32)
    return in_memory.ArraySource(
        images, labels, count, fingerprint, captions=captions.make_captions(texts)
    )


def _take(source, count, state=None, **options):
    iterator = pipeline.train_iterator(source, **({"seed": 0, "batch_size": 4} | options))
    if state is not None:
        iterator.set_state(state)
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def _stream(batches):
    """Return labels and captions of all examples, int [2, N]."""
    return np.concatenate([np.stack([b["label"], b["caption"]]) for b in batches], axis=1)


def test_the_table_has_the_empty_text_and_every_caption_once():
    found = captions.make_captions(TEXTS)
    assert found.table.texts == ("", "a", "b", "c", "d", "e")
    assert [found[i] for i in range(len(found))] == list(TEXTS)
    np.testing.assert_array_equal(found.first(np.array([3, 1, 2])), [1, 4, 2])
    assert found.first(np.array([0])).dtype == np.int32


def test_spaces_around_a_caption_are_no_part_of_it():
    assert captions.make_captions([[" a\n"], ["a"]]).table.texts == ("", "a")


@pytest.mark.parametrize("texts", [[["a"], []], [["a"], ["b", " "]]])
def test_an_image_without_a_caption_is_named(texts):
    with pytest.raises(ValueError, match="image 1 has no caption, or an empty one"):
        captions.make_captions(texts)


def test_some_of_the_images_keep_their_captions_and_the_table():
    found = captions.make_captions(TEXTS)
    rows = np.array([2, 0, 0])
    part = found.take(rows)
    assert [part[i] for i in range(3)] == [TEXTS[i] for i in rows]
    assert part.table == found.table
    assert len(found.take(np.array([], np.int64))) == 0


def test_the_digest_tells_texts_and_whose_they_are():
    same = captions.make_captions(TEXTS).digest
    assert captions.make_captions(TEXTS).digest == same
    for other in (
        (("a", "b", "c"), ("d",), ("b", "e"), ("c",)),
        (("a", "b"), ("c", "d"), ("b", "e"), ("a",)),
        (("a", "b", "x"), ("d",), ("b", "e"), ("a",)),
    ):
        assert captions.make_captions(other).digest != same


def test_a_batch_has_a_caption_of_each_of_its_images():
    source = _source()
    texts = source.captions.table.texts
    for batch in _take(source, 50):
        assert batch["caption"].dtype == np.int32
        for label, number in zip(batch["label"], batch["caption"], strict=True):
            assert texts[number] in TEXTS[label]


def test_a_source_without_captions_has_batches_without():
    source = _source()
    bare = in_memory.ArraySource(source.images, source.labels, 4, "rows")
    assert set(_take(bare, 1)[0]) == {"image", "label"}
    assert set(next(pipeline.eval_batches(bare, batch_size=2))[0]) == {"image", "label"}


@pytest.mark.parametrize("batch_size", [1, 3, 8, 40])
def test_captions_do_not_depend_on_the_batch_size(batch_size):
    source, total = _source(), 240
    whole = _stream(_take(source, total // 4, caption_dropout=0.3))
    ours = _stream(
        _take(source, -(-total // batch_size), batch_size=batch_size, caption_dropout=0.3)
    )
    np.testing.assert_array_equal(ours[:, :total], whole)


@pytest.mark.parametrize("process_count", [2, 4])
def test_captions_do_not_depend_on_the_number_of_processes_or_threads(process_count):
    source, options = _source(), {"batch_size": 8, "caption_dropout": 0.3}
    whole = _take(source, 20, **options)
    shards = [
        _take(
            source,
            20,
            process_index=p,
            process_count=process_count,
            num_threads=3,
            prefetch=p,
            **options,
        )
        for p in range(process_count)
    ]
    for n in range(20):
        np.testing.assert_array_equal(
            np.concatenate([shard[n]["caption"] for shard in shards]), whole[n]["caption"]
        )


@pytest.mark.parametrize("position", [0, 1, 7])
def test_a_resumed_run_has_the_captions_of_an_uninterrupted_one(position):
    source, options = _source(), {"batch_size": 3, "caption_dropout": 0.3}
    whole = _take(source, 20, **options)
    state = {"batches": position, "seed": 0, "batch_size": 3, "fingerprint": "rows"}
    for ours, theirs in zip(_take(source, 10, state, **options), whole[position:], strict=False):
        for key in ("image", "label", "caption"):
            assert ours[key].tobytes() == theirs[key].tobytes()


def test_seeds_and_epochs_have_draws_of_their_own():
    texts = [[f"{i} {j}" for j in range(50)] for i in range(4)]
    source = _source(texts)
    chosen = {
        seed: [
            _stream([batch])[:, np.argsort(batch["label"])][1]
            for batch in _take(source, 3, seed=seed)
        ]
        for seed in (0, 1)
    }
    assert len({tuple(row) for rows in chosen.values() for row in rows}) == 6


def test_every_caption_of_an_image_is_equally_likely():
    """Pearson's chi-squared test; false alarms have odds of 1 : 10,000."""
    labels, numbers = _stream(_take(_source(TEXTS * 50), 60, batch_size=200))
    labels %= 4
    seen = np.bincount(numbers[labels == 0], minlength=4)[1:4]
    assert seen.sum() == 3000
    assert stats.chisquare(seen).pvalue > 1e-4


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_the_share_of_hidden_captions_is_the_dropout(share):
    """The same for every image, and independent of which caption is drawn."""
    source = _source(TEXTS * 50)
    labels, numbers = _stream(_take(source, 40, batch_size=200, caption_dropout=share))
    labels %= 4
    for label in range(4):
        hidden = np.count_nonzero(numbers[labels == label] == captions.HIDDEN)
        assert stats.binomtest(hidden, 2000, share).pvalue > 1e-4
    shown = np.bincount(numbers[(labels == 0) & (numbers > 0)], minlength=4)[1:4]
    assert share == 1 or stats.chisquare(shown).pvalue > 1e-4


def test_hiding_more_leaves_the_other_captions_as_they_are():
    source = _source()
    none, some = (_stream(_take(source, 40, caption_dropout=share))[1] for share in (0, 0.5))
    assert (some == 0).any()
    np.testing.assert_array_equal(some[some > 0], none[some > 0])


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(
        UsageError, match=r"share of hidden captions is .*: give a number from 0 to 1"
    ):
        pipeline.train_iterator(_source(), batch_size=4, seed=0, caption_dropout=share)


def test_evaluation_takes_the_first_caption():
    batches = list(pipeline.eval_batches(_source(), batch_size=3))
    np.testing.assert_array_equal(
        np.concatenate([b["caption"] for b, _ in batches]), [1, 4, 2, 1, 0, 0]
    )


def test_an_image_read_in_place_of_another_brings_its_own_caption():
    class Damaged:
        """Reads row 1 for row 0, as a source does that skips unreadable files."""

        def __init__(self, source):
            self._source, self.captions = source, source.captions
            self.image_shape, self.num_classes = source.image_shape, source.num_classes
            self.fingerprint = source.fingerprint

        def __len__(self):
            return len(self._source)

        def gather_rows(self, indices):
            rows = np.where(indices == 0, 1, indices)
            return self._source.gather(rows), rows

        def gather(self, indices):
            return self.gather_rows(indices)[0]

    source = Damaged(_source())
    decoded = in_memory.decode_source(source)
    assert [decoded.captions[i] for i in range(4)] == [TEXTS[1], TEXTS[1], TEXTS[2], TEXTS[3]]
    for one in (source, decoded):
        for batch in _take(one, 10):
            for value, number in zip(batch["image"][:, 0, 0, 0], batch["caption"], strict=True):
                assert one.captions.table.texts[number] in TEXTS[value]


def test_the_draws_that_checkpoints_rely_on_have_not_changed():
    """A golden of our own output: otherwise resumed runs would continue on other captions.

    If this must change, say so in the changelog and put the new numbers here.
    """
    texts = [[f"{i} {j}" for j in range(5)] for i in range(4)]
    labels, numbers = _stream(_take(_source(texts), 3, seed=1234, caption_dropout=0.25))
    assert numbers.tolist() == [5, 12, 18, 8, 12, 16, 4, 8, 18, 6, 0, 0]
    assert labels.tolist() == [0, 2, 3, 1, 2, 3, 0, 1, 3, 1, 2, 0]


def test_digits_are_named_by_their_class(tmp_path):
    for cache in ("auto", "never"):
        source = sources.load(
            name="digits",
            split="test",
            data_dir=str(tmp_path),
            image_size=8,
            channels=1,
            captions="auto",
            cache=cache,
        )
        names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        for i in range(0, 300, 7):
            found = source.captions[i]
            assert len(found) == len(set(found)) == 4
            assert all(text.split()[-1] == names[source[i]["label"]] for text in found)
            assert f"a handwritten {names[source[i]['label']]}" in found
    assert len(source.captions.table.texts) == 41
    with pytest.raises(UsageError, match="Unknown captions of the bundled digits 'text'"):
        sources.load(
            name="digits",
            split="test",
            data_dir=str(tmp_path),
            image_size=8,
            channels=1,
            captions="text",
        )
