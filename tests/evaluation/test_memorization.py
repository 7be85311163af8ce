"""The audit of memorization: its false alarms and its power, on data whose copies are planted."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation import memorization, pairwise
from ddpm_jax.evaluation.memorization import audit, likelihood_gap

DIMS, NUM_TRAIN, NUM_HELD_OUT, NUM_SAMPLES = 5, 200, 60, 50
REPEATS = 60
# 5 % asked for, of 60 repeats: 0.05 + 3 sqrt(0.05 · 0.95 / 60)
MOST_FALSE_ALARMS = 0.135


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch):
    monkeypatch.setattr(memorization, "PERMUTATIONS", 199)


def _data(rng, count):
    """Three clusters of different spread and dimension, as images of several classes are."""
    cluster = rng.integers(0, 3, count)
    x = rng.normal(size=(count, DIMS)) * np.array([1.0, 0.4, 2.0])[cluster, None]
    x[cluster == 1, 2:] *= 0.3
    return x + 4 * np.eye(3, DIMS)[cluster]


def _with_duplicates(rng, count):
    """One in ten is all but another one again: near-duplicates, as real sets have them."""
    x = _data(rng, count)
    fixed = _data(np.random.default_rng(99), 40)
    again = rng.random(count) < 0.1
    x[again] = fixed[rng.integers(0, 40, again.sum())] + rng.normal(0, 0.003, (again.sum(), DIMS))
    return x


def _sets(seed, draw=_data):
    rng = np.random.default_rng(seed)
    return rng, *(draw(rng, n) for n in (NUM_SAMPLES, NUM_TRAIN, NUM_HELD_OUT))


def _alarms(make, repeats=REPEATS):
    """Return the audits of `make(seed)`, and how often each of the tests is significant."""
    found = [audit(*make(seed), seed=seed) for seed in range(repeats)]
    copy = np.mean([each.copy_p_value <= 0.025 for each in found])
    close = np.mean([each.closeness_p_value <= 0.025 for each in found])
    alarm = np.mean([not each.verdict.startswith("No sign") for each in found])
    return found, copy, close, alarm


# False alarms


@pytest.mark.parametrize("draw", [_data, pytest.param(_with_duplicates, marks=pytest.mark.full)])
def test_a_perfect_model_raises_no_alarm_beyond_the_level(draw):
    found, *_, alarm = _alarms(lambda seed: _sets(seed, draw)[1:])
    assert alarm <= MOST_FALSE_ALARMS
    assert np.mean([each.split_p_value <= 0.05 for each in found]) <= MOST_FALSE_ALARMS
    assert np.mean([each.rank_p_value <= 0.05 for each in found]) <= MOST_FALSE_ALARMS
    shares = [each.share_nearest_train for each in found]
    expected = NUM_TRAIN / (NUM_TRAIN + NUM_HELD_OUT)
    assert np.mean(shares) == pytest.approx(expected, abs=4 * np.std(shares) / math.sqrt(REPEATS))


@pytest.mark.full
@pytest.mark.parametrize("bad", ["blurred", "noisy", "one_mode"])
def test_a_bad_model_is_no_memorizing_one(bad):
    def make(seed):
        _, samples, train, held_out = _sets(seed)
        if bad == "blurred":
            samples = train.mean(axis=0) + 0.3 * (samples - train.mean(axis=0))
        elif bad == "noisy":
            samples = samples + np.random.default_rng(seed + 10_000).normal(0, 3, samples.shape)
        else:
            samples = samples[:1] + 0.1 * (samples - samples[:1])
        return samples, train, held_out

    assert _alarms(make)[-1] <= MOST_FALSE_ALARMS


def test_held_out_images_from_elsewhere_are_noticed_and_prove_nothing():
    def make(seed):
        _, samples, train, held_out = _sets(seed)
        return samples, train, held_out + 2.0

    found, copy, close, alarm = _alarms(make, 30)
    assert close > 0.9, "they are closer to the training images"
    assert np.mean([each.split_p_value <= 0.025 for each in found]) > 0.9
    assert copy <= MOST_FALSE_ALARMS
    assert alarm <= MOST_FALSE_ALARMS + 0.05
    assert "proves nothing, as the held-out images differ" in found[0].verdict


# Power


def _planted(seed, planted, distance, draw=_data):
    rng, samples, train, held_out = _sets(seed, draw)
    rows = rng.choice(NUM_TRAIN, planted, replace=False)
    noise = rng.normal(size=(planted, DIMS))
    noise *= distance / np.linalg.norm(noise, axis=1, keepdims=True)
    samples[:planted] = train[rows] + noise
    return samples, train, held_out


@pytest.mark.parametrize(
    ("planted", "distance", "power"), [(1, 0.0, 1.0), (5, 0.0, 1.0), (20, 0.0, 1.0), (5, 0.05, 0.8)]
)
def test_planted_copies_are_found(planted, distance, power):
    def make(seed):
        return _planted(seed, planted, distance)

    found, copy, *_ = _alarms(make, 25)
    assert copy >= power
    if not distance:
        for each in found:
            copies = [pair for pair in each.copies if pair.sample < planted]
            assert len(copies) == planted
            assert all(pair.distance < 1e-6 for pair in copies)
            assert each.verdict.startswith(f"Copies: {len(each.copies)} of 50 samples")
        wrong = np.mean([1 - planted / len(each.copies) for each in found])
        assert wrong <= 0.025 + 3 * 0.025
        if planted == 20:
            assert all(each.rank_p_value <= 0.05 for each in found)


def test_a_sample_as_near_as_the_duplicates_of_real_data_are_is_no_copy():
    copies = [
        _alarms(lambda seed, draw=draw: _planted(seed, 1, 0.007, draw), 25)[1]
        for draw in (_data, _with_duplicates)
    ]
    assert copies[0] > 0.8
    assert copies[1] <= MOST_FALSE_ALARMS


def test_samples_that_all_keep_near_the_training_images_are_found():
    def make(seed):
        rng, _, train, held_out = _sets(seed)
        near = train[rng.choice(NUM_TRAIN, NUM_SAMPLES, replace=False)]
        return near + rng.normal(0, 0.3, near.shape), train, held_out

    found, _, close, alarm = _alarms(make, 25)
    assert close > 0.7
    assert alarm > 0.8
    assert any(each.verdict.startswith("Closer to the training images") for each in found)


# The parts


@pytest.mark.parametrize("tile", [2**26, 8 * DIMS * 7])
@pytest.mark.parametrize("mirrored", [False, True])
def test_nearest_images_are_those_of_a_loop(monkeypatch, tile, mirrored):
    monkeypatch.setattr(pairwise, "BUFFER", tile)
    _, samples, train, held_out = _sets(0)
    mirror = (lambda x: x[:, ::-1]) if mirrored else None
    found = audit(samples, train, held_out, mirror=mirror)

    def nearest(x, images):
        variants = [x, x[::-1]] if mirrored else [x]
        distances = [min(math.dist(v, y) for v in variants) for y in images]
        return int(np.argmin(distances)), min(distances)

    assert sorted(pair.sample for pair in found.pairs) == list(range(NUM_SAMPLES))
    assert list(found.pairs) == sorted(found.pairs, key=lambda pair: pair.ratio)
    for pair in found.pairs[::10]:
        row, distance = nearest(samples[pair.sample], train)
        assert pair.train == row
        assert pair.distance == pytest.approx(distance, rel=1e-9)
        row, other = nearest(samples[pair.sample], held_out)
        assert pair.held_out == row
        assert pair.ratio == pytest.approx(distance / other, rel=1e-9)
    without = [nearest(train[i], np.delete(train, i, axis=0))[1] for i in range(0, NUM_TRAIN)]
    assert found.median_distances[1] == pytest.approx(np.median(without), rel=1e-9)


def test_p_values_are_ranks_among_the_training_images_and_a_power_law_below_them():
    """Of nearest distances in d dimensions P(ratio < x) = x^d is known far below 1 / n."""
    d, n, x = 4.0, 1000, np.array([0.5, 0.3, 0.1, 0.02])
    tails = []
    for seed in range(200):
        null = np.random.default_rng(seed).random(n) ** (1 / d)
        p_values, ranks = memorization._p_values(null, x)
        expected = (1 + (null[:, None] <= x).sum(axis=0)) / (n + 1)
        np.testing.assert_allclose(ranks, expected, rtol=1e-14)
        np.testing.assert_array_equal(p_values[x >= null.min()], ranks[x >= null.min()])
        tails.append(p_values)
    tails = np.array(tails)
    exact = x**d
    # one standard error lower: nearly always on the safe side, and of the order of magnitude
    assert np.mean(tails[:, 2] >= exact[2]) > 0.9
    assert exact[2] < np.median(tails[:, 2]) < 5 * exact[2]
    assert exact[3] < np.median(tails[:, 3]) < 20 * exact[3]
    assert memorization._p_values(null, np.zeros(1))[0] == memorization.LEAST_P


def test_duplicates_in_the_training_set_leave_only_ranks():
    null = np.concatenate([np.zeros(4), np.linspace(0.1, 1, 196)])
    p_values, ranks = memorization._p_values(null, np.array([0.0, 0.05, 0.1]))
    np.testing.assert_allclose(p_values, np.array([5, 5, 6]) / 201)
    np.testing.assert_array_equal(p_values, ranks)


def test_all_p_values_together_are_simes_and_the_copies_benjamini_hochbergs():
    p = np.random.default_rng(0).random(30) ** 2 / 3
    expected = min(30 * value / k for k, value in enumerate(sorted(p), 1))
    assert memorization._simes(p) == pytest.approx(expected, rel=1e-14)
    for level in (0.01, 0.2, 0.5):
        adjusted = scipy.stats.false_discovery_control(p)
        assert memorization._count_rejected(p, level) == np.sum(adjusted <= level)


def _found(nearer, image):
    """The nearest images of queries: a training image or a held-out one, by number."""
    nearer, image = np.array(nearer), np.array(image)
    to_train, to_held_out = np.where(nearer, 1.0, 2.0), np.where(nearer, 2.0, 1.0)
    return memorization._Nearest(image, to_train, image, to_held_out)


def test_closeness_of_samples_with_different_neighbours_is_hypergeometric(monkeypatch):
    monkeypatch.setattr(memorization, "PERMUTATIONS", 10_000)
    found = _found([True] * 9 + [False] * 3, range(12))
    share, p_value = memorization._closeness(found, 20, 15, np.random.default_rng(0))
    assert share == 9 / 12
    expected = scipy.stats.hypergeom.sf(8, 35, 20, 12)
    assert p_value == pytest.approx(expected, abs=4 * math.sqrt(expected / 10_000))


def test_many_samples_near_one_image_are_one_piece_of_evidence(monkeypatch):
    monkeypatch.setattr(memorization, "PERMUTATIONS", 10_000)
    found = _found([True] * 50 + [False] * 2, [3] * 50 + [1, 2])
    p_value = memorization._closeness(found, 20, 20, np.random.default_rng(0))[1]
    assert p_value == pytest.approx(0.5, abs=0.02), "the one image is a training one, or is not"


def test_closeness_is_exact_over_all_divisions_of_a_small_pool(monkeypatch):
    monkeypatch.setattr(memorization, "PERMUTATIONS", 10_000)
    queries = {0: 4, 1: 1, 5: 2}  # samples nearest to image 0, 1 of training, and 0 held out
    found = _found([True] * 5 + [False] * 2, [0, 0, 0, 0, 1, 0, 0])
    divisions = list(itertools.combinations(range(8), 5))
    as_large = [sum(queries.get(i, 0) for i in division) >= 5 for division in divisions]
    p_value = memorization._closeness(found, 5, 3, np.random.default_rng(0))[1]
    assert p_value == pytest.approx(np.mean(as_large), abs=0.02)


def test_an_image_of_both_sets_says_nothing():
    found = memorization._Nearest(
        np.zeros(2, int), np.zeros(2), np.zeros(2, int), np.array([0.0, 0.0])
    )
    np.testing.assert_array_equal(found.ratios, [1, 1])
    assert memorization._closeness(found, 3, 1, np.random.default_rng(0)) == (0.75, 1.0)


def test_of_many_images_a_random_part_is_probed(monkeypatch):
    monkeypatch.setattr(memorization, "PROBES", 150)
    _, _, train, held_out = _sets(0)
    probes = memorization._probe(train, held_out, None, np.random.default_rng(0))
    assert len(probes.ids) == 150
    assert len(probes.of_train.train) + len(probes.of_held_out.train) == 150
    every = memorization._nearest(
        train, train, held_out, mirror=None, own=(np.arange(NUM_TRAIN), np.full(NUM_TRAIN, -1))
    )
    rows = probes.ids[probes.ids < NUM_TRAIN]
    np.testing.assert_allclose(probes.of_train.to_train, every.to_train[rows], rtol=1e-12)
    np.testing.assert_array_equal(probes.of_train.held_out, every.held_out[rows])


def test_the_gap_of_bits_is_welchs():
    train, held_out = [3.0, 3.2, 3.1, 2.9], [3.4, 3.9, 3.3]
    found = likelihood_gap(np.array(train), np.array(held_out))
    parts = [np.var(x, ddof=1) / len(x) for x in (held_out, train)]
    assert found.value == pytest.approx(np.mean(held_out) - np.mean(train))
    assert found.standard_error == pytest.approx(math.sqrt(sum(parts)))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    t = found.value / found.standard_error
    assert found.p_value == pytest.approx(scipy.stats.t.sf(t, freedom), rel=1e-9)
    assert likelihood_gap(np.array(held_out), np.array(train)).p_value > 0.9


def test_what_cannot_be_audited_is_refused():
    _, samples, train, held_out = _sets(0)
    with pytest.raises(UsageError, match="audit of memorization of 99 training images"):
        audit(samples, train[:99], held_out)
    with pytest.raises(UsageError, match="needs at least 2 examples of each set, got 1"):
        audit(samples, train, held_out[:1])
    with pytest.raises(UsageError, match="at the level 1"):
        audit(samples, train, held_out, level=1)
    with pytest.raises(UsageError, match="bits of 1 training and 3 held-out"):
        likelihood_gap(np.ones(1), np.ones(3))


# Digits


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    return load_digits().data


def _of_digits(digits, seed, planted):
    """The digits in a random order: 300 held out, 300 as samples of a perfect model."""
    rng = np.random.default_rng(seed)
    held_out, samples, train = np.split(digits[rng.permutation(len(digits))], [300, 600])
    samples = samples.copy()
    samples[:planted] = train[rng.choice(len(train), planted, replace=False)]
    return samples, train, held_out


@pytest.mark.full
@pytest.mark.parametrize("planted", [1, 5, 20])
def test_training_digits_among_samples_are_found(digits, planted):
    for seed in range(3):
        found = audit(*_of_digits(digits, seed, planted), seed=seed)
        assert found.copy_p_value < 1e-6
        assert {pair.sample for pair in found.copies} >= set(range(planted))
        assert found.verdict.startswith("Copies")
        if planted != 5:  # by ranks alone twenty are found and one is not
            assert (found.rank_p_value <= 0.05) == (planted == 20)


@pytest.mark.slow
def test_held_out_digits_raise_no_alarm_beyond_the_level(digits):
    found = [audit(*_of_digits(digits, seed, 0), seed=seed) for seed in range(60)]
    alarms = [not each.verdict.startswith("No sign") for each in found]
    assert np.mean(alarms) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)
