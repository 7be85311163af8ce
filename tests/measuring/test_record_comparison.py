"""Two results compared: each planted difference is named, and its effect is what it was planted to
be, computed by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.errors import UsageError
from ddpm_jax.generation.storing import write_shards
from ddpm_jax.measuring.image_comparison import compare_images
from ddpm_jax.measuring.record_comparison import compare_records
from ddpm_jax.monitoring.results import write_record

RNG = np.random.default_rng(0)
PIXELS = RNG.normal(100, 30, (60, 8, 8, 1)).clip(0, 255).astype(np.uint8)
FEW_AND_ALL = {"num_images": 20}, {}
OTHERS = RNG.normal(110, 40, (60, 8, 8, 1)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def planted(tmp_path):
    """planted((images, reference, settings), (...)) -> the comparison of both, their values."""

    def compare(*sides, change=({}, {}), **options):
        values = []
        for name, (images, reference, settings), more in zip("ab", sides, change, strict=True):
            settings = {"features": "pixels", "metrics": "fid"} | settings
            (record,) = compare_images(images, reference, **settings).values()
            write_record(tmp_path / f"{name}.json", record | more)
            values.append(record["value"])
        return compare_records(tmp_path / "a.json", tmp_path / "b.json", **options), values

    return compare


@pytest.fixture
def sets(tmp_path):
    """Folders png and jpg of the same pictures, NPZ files of these and of others."""
    for suffix in ("png", "jpg"):
        (tmp_path / suffix).mkdir()
        for i, image in enumerate(PIXELS):
            picture = Image.fromarray(image[..., 0])
            picture.save(tmp_path / suffix / f"{i:02d}.{suffix}", quality=40)
    np.savez(tmp_path / "others.npz", OTHERS)
    np.savez(tmp_path / "large.npz", np.kron(PIXELS, np.ones((1, 2, 2, 1), np.uint8)))
    return tmp_path


def names(comparison):
    return [set(difference.settings) for difference in comparison.differences]


def test_jpegs_are_named_and_explain_the_whole_difference(planted, sets):
    found, (png, jpg) = planted(*((sets / s, sets / "others.npz", {}) for s in ("png", "jpg")))
    assert names(found) == [{"images.files.png", "images.files.jpg"}]
    assert found.differences[0].effect == pytest.approx(jpg - png)
    assert abs(jpg - png) > 1e-3
    assert "not explained by these effects: +0" in found.text


def test_fewer_samples_are_named_with_their_effect_in_either_order(planted, sets):
    few, many = ((sets / "png", sets / "others.npz", n) for n in ({"num_images": 20}, {}))
    for sides in ((few, many), (many, few)):
        found, (first, second) = planted(*sides)
        assert names(found) == [{"num_samples"}]
        assert found.differences[0].effect == pytest.approx(second - first)


def test_all_four_shares_are_compared_by_name(planted, sets):
    sides = [(sets / "png", sets / "others.npz", {"metrics": "prdc"} | n) for n in FEW_AND_ALL]
    found, _ = planted(*sides)
    few, many = (
        compare_images(a, b, features="pixels", **n)["prdc"]["results"] for a, b, n in sides
    )
    assert list(found.numbers) == ["precision", "recall", "density", "coverage"]
    for name, effect in found.differences[0].effects.items():
        assert effect == pytest.approx(many[name]["value"] - few[name]["value"])
        assert f"{name} {few[name]['value']:.6g} and {many[name]['value']:.6g}: " in found.text
        assert f"not explained of {name} by these effects: +0" in found.text
    assert abs(found.differences[0].effects["recall"]) > 1e-3
    (titles,) = (line for line in found.text.splitlines() if line.split()[:1] == ["setting"])
    assert titles.split() == ["setting", "first", "second", *found.numbers]


def test_sets_are_found_from_another_folder(sets, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(sets)
    for name, settings in zip("ab", FEW_AND_ALL, strict=True):
        record = compare_images("png", "others.npz", "fid", features="pixels", **settings)["fid"]
        write_record(sets / f"{name}.json", record)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    found = compare_records(sets / "a.json", sets / "b.json")
    assert found.differences[0].effect is not None


def test_where_one_set_is_too_small_the_other_tells_the_effect(planted, sets):
    np.savez(sets / "few.npz", PIXELS[:20])
    found, (few, many) = planted(
        (sets / "few.npz", sets / "others.npz", {}), (sets / "png", sets / "others.npz", {})
    )
    of_size = next(d for d in found.differences if "num_samples" in d.settings)
    assert of_size.effect == pytest.approx(many - few)  # the first 20 are the same pictures


def test_a_resizer_is_named_with_its_effect(planted, sets):
    sides = [
        (sets / "large.npz", sets / "large.npz", {"features": "digits", "resize": resize})
        for resize in ("clean", "tf1_bilinear")
    ]
    sides = [(a, sets / "others.npz", settings) for a, _, settings in sides]
    found, (clean, legacy) = planted(*sides)
    assert names(found) == [{"network.resizer"}]
    assert found.differences[0].settings["network.resizer"] == ("'clean'", "'tf1_bilinear'")
    assert found.differences[0].effect == pytest.approx(legacy - clean, rel=1e-4)


@pytest.mark.full
def test_train_against_test_is_named_with_its_effect(planted, data_dir):
    where = {"data_dir": data_dir, "num_images": 100, "features": "digits"}
    found, _ = planted(*(("digits:train", f"digits:{split}", where) for split in ("train", "test")))
    assert names(found) == [{"num_reference"}, {"reference.source"}]
    of_split = found.differences[1]
    assert of_split.settings["reference.source"] == ("'digits:train'", "'digits:test'")
    assert of_split.effect is not None
    assert of_split.effect > 0


def test_weights_sampler_and_seed_are_named_and_their_samples_have_one_effect(planted, sets):
    change = [{"weights": average, "seed": seed} for average, seed in (("ema", 0), ("raw", 1))]
    sides = [(sets / s, sets / "others.npz", {}) for s in ("png", "jpg")]
    found, (ema, raw) = planted(*sides, change=change)
    assert names(found) == [{"weights", "seed", "images.files.png", "images.files.jpg"}]
    assert found.differences[0].effect == pytest.approx(raw - ema)
    assert found.text.count("together") == 3


def test_what_cannot_be_computed_again_is_said_to_be_so(planted, sets):
    sides = [(sets / "png", sets / "others.npz", {"num_images": n}) for n in (20, 40)]
    found, _ = planted(*sides, recompute=False)
    assert found.differences[0].effect is None
    found, _ = planted(*sides, change=({"device": "cpu"}, {"device": "TPU v4"}))
    assert names(found) == [{"num_samples"}, {"device"}]
    assert found.differences[1] == ({"device": ("'cpu'", "'TPU v4'")}, None, "cannot be computed")
    Image.fromarray(OTHERS[0, ..., 0]).save(sets / "png" / "00.png")
    found = compare_records(sets / "a.json", sets / "b.json")
    assert found.differences[0].effect is None
    assert "have changed" in found.differences[0].why


def test_no_function_of_a_record_is_run(planted, sets):
    network = {"name": "os:getcwd", "dims": 64, "function": "os:getcwd"}
    sides = [(sets / "png", sets / "others.npz", {"num_images": n}) for n in (20, 40)]
    found, _ = planted(*sides, change=({"network": network}, {"network": network}))
    assert "which no record may run" in found.differences[0].why


def test_equal_records_have_no_difference(planted, sets):
    side = (sets / "png", sets / "others.npz", {})
    found, _ = planted(side, side)
    assert found.differences == []
    assert "No setting differs." in found.text


def test_what_is_no_record_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"metric": "fid", "value": 1.0}))
    (tmp_path / "b.json").write_text(json.dumps({"metric": "kid", "value": 1.0}))
    (tmp_path / "c.json").write_text("[]")
    (tmp_path / "d.json").write_text(json.dumps({"metric": "fid", "value": "low"}))
    (tmp_path / "f.json").write_text(json.dumps({"metric": "fid"}))
    (tmp_path / "g.json").write_text(json.dumps({"metric": "bpd", "bits": 1.0}))
    (tmp_path / "h.json").mkdir()
    refusals = {"b": "of kid", "c": "no result", "d": "its value", "e": "no ", "h": "is a folder"}
    refusals |= {"f": "a result of fid without a value", "g": "a result of bpd: compare takes"}
    for other, says in refusals.items():
        with pytest.raises(UsageError, match=says):
            compare_records(tmp_path / "a.json", tmp_path / f"{other}.json")


def test_what_made_the_shards_of_two_sets_is_named(planted, tmp_path, sets):
    for average, pixels in (("ema", PIXELS), ("raw", OTHERS)):
        write_shards(
            tmp_path / average,
            lambda indices, pixels=pixels: [(indices, pixels[indices])],
            num_images=60,
            shard_size=25,
            manifest={"weights": average, "sampler": "ddim", "checkpoint": f"runs/{average}"},
        )
    found, (ema, raw) = planted(
        *((tmp_path / name, sets / "others.npz", {}) for name in ("ema", "raw"))
    )
    assert names(found) == [{"images.made.weights"}]
    assert found.differences[0].effect == pytest.approx(raw - ema)
