"""Two sets compared: numbers are those of SciPy and scikit-learn on the same features, each set is
read once, and what cannot be compared is refused before anything is computed."""

import json

import numpy as np
import pytest
import scipy.linalg
from PIL import Image
from sklearn.metrics.pairwise import polynomial_kernel

from ddpm_jax import host_memory
from ddpm_jax.errors import UsageError
from ddpm_jax.evaluation.frechet_errors import expected_distance
from ddpm_jax.measuring.feature_cache import FeatureCache
from ddpm_jax.measuring.feature_metrics import as_text, with_spread
from ddpm_jax.measuring.feature_networks import load_features
from ddpm_jax.measuring.image_comparison import compare_images

PIXELS = {"features": "pixels"}
DIGITS = {"features": "digits"}


def scipy_fid(a, b):
    """The distance as its paper writes it, with the square root of a matrix."""
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (a, b))
    c_1, c_2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(c_1 @ c_2).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c_1 + c_2 - 2 * root)


def save_folder(folder, pixels, **options):
    folder.mkdir()
    suffix = options.pop("suffix", "png")
    for i, image in enumerate(pixels):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03d}.{suffix}", **options)
    return folder


def test_numbers_are_those_of_scipy_and_scikit_learn_on_the_same_features(pictures):
    a, b = pictures
    found = compare_images(a, b, "fid,kid", **PIXELS)
    x, y = (p.reshape(len(p), -1) / 255 for p in pictures)
    assert found["fid"]["value"] == pytest.approx(scipy_fid(x, y), rel=1e-6)
    kernels = [polynomial_kernel(*pair, degree=3, coef0=1) for pair in ((x, x), (y, y), (x, y))]
    n, m = len(x), len(y)
    kid = (
        (kernels[0].sum() - np.trace(kernels[0])) / (n * (n - 1))
        + (kernels[1].sum() - np.trace(kernels[1])) / (m * (m - 1))
        - 2 * kernels[2].mean()
    )
    assert found["kid"]["value"] == pytest.approx(kid, rel=1e-6)
    assert found["kid"]["error"] > 0


def test_the_packages_own_network_through_files_and_the_cache(pictures, tmp_path, cache, looked_at):
    digits = [np.kron(p, np.ones((1, 2, 2, 1), np.uint8)) for p in pictures]
    a = save_folder(tmp_path / "a", digits[0])
    np.savez(tmp_path / "b.npz", digits[1])
    extract = load_features("digits", image_shape=(8, 8, 1)).extract
    wanted = scipy_fid(*(extract(p).features for p in digits))
    first = compare_images(a, tmp_path / "b.npz", "fid,kid,prdc,is", **DIGITS)
    assert first["fid"]["value"] == pytest.approx(wanted, rel=1e-5)
    assert sum(looked_at) == 110, "each image is looked at once for four metrics"
    again = compare_images(a, tmp_path / "b.npz", "fid,kid,prdc,is", **DIGITS)
    assert sum(looked_at) == 110, "and not again"
    assert again == first
    assert "reference" not in first["is"]

    # Damage, and an entry that says other things than its name, are noticed.
    for entry in cache.iterdir():
        entry.write_bytes(entry.read_bytes()[:-200])
    assert compare_images(a, tmp_path / "b.npz", "fid", **DIGITS)["fid"]["value"] == pytest.approx(
        wanted, rel=1e-5
    )
    assert sum(looked_at) == 220
    one, other = sorted(cache.iterdir())
    one.write_bytes(other.read_bytes())
    assert compare_images(a, tmp_path / "b.npz", "fid", **DIGITS)["fid"]["value"] == pytest.approx(
        wanted, rel=1e-5
    )

    # Another picture is another set.
    (a / "000.png").unlink()
    assert compare_images(a, tmp_path / "b.npz", "fid", **DIGITS)["fid"]["num_samples"] == 59


def test_a_cache_that_cannot_be_written_is_passed_over(pictures, tmp_path):
    (tmp_path / "file").write_text("")
    cache, decides = FeatureCache(tmp_path / "file"), {"network": {"sha256": "0"}}
    cache.keep(decides, {"labels": np.zeros(2)})
    assert cache.find(decides, elements=False, logits=False) is None


def test_statistics_stand_for_their_images(pictures, tmp_path):
    a, b = pictures
    y = b.reshape(len(b), -1) / 255
    for names in (("mu", "sigma"), ("mean", "cov")):
        statistics = dict(zip(names, (y.mean(0), np.cov(y, rowvar=False)), strict=True))
        np.savez(tmp_path / "b.npz", **statistics)
        found = compare_images(a, tmp_path / "b.npz", "fid", **PIXELS)["fid"]
        assert found["value"] == pytest.approx(
            compare_images(a, b, "fid", **PIXELS)["fid"]["value"], rel=1e-5
        )
        assert found["num_reference"] is None
        assert found["reference"]["kind"] == "statistics"
    np.savez(tmp_path / "features.npz", pool_3=y)
    found = compare_images(a, tmp_path / "features.npz", "fid,kid", **PIXELS)
    assert found["kid"]["value"] == pytest.approx(
        compare_images(a, b, "kid", **PIXELS)["kid"]["value"], rel=1e-5
    )


def test_a_record_says_what_decides_its_number(pictures, tmp_path):
    a = save_folder(tmp_path / "a", pictures[0], suffix="jpg", quality=90)
    record = compare_images(a, pictures[1], "fid", num_images=20, num_reference=10, **PIXELS)["fid"]
    assert json.loads(json.dumps(record)) == record
    assert record["images"]["files"] == {"jpg": 60}
    assert (record["num_samples"], record["num_reference"]) == (20, 10)
    assert record["images"]["count"] == 20
    assert record["network"]["name"] == "pixels"
    assert {"device", "versions", "protocol"} <= set(record)
    png = save_folder(tmp_path / "b", pictures[0])
    other = compare_images(png, pictures[1], "fid", num_images=20, num_reference=10, **PIXELS)
    assert other["fid"]["images"]["images_sha256"] != record["images"]["images_sha256"]


@pytest.mark.parametrize(
    ("names", "settings", "says"),
    [
        ("fid,kdi", {}, "Unknown metric of images 'kdi'"),
        ("fid,is", {}, "needs a network that classifies"),
        ("kid", {"num_images": 2}, "at least 3 images"),
        ("fid", {"num_images": 61}, "num_images is 61, and there are 60"),
        ("fid", {"num_reference": 51}, "num_reference is 51, and there are 50"),
        ("fid", {"data_dir": "x"}, "no split of a dataset is compared: leave it out"),
        ("fid", {"image_size": 5}, "The images of given are 4x4 pixels, smaller than image_size 5"),
        ("fid", {"num_images_": 5}, "no setting num_images_. Did you mean 'num_images'?"),
        ("fid", {"feature": "pixels"}, "There is no setting feature. Did you mean 'features'?"),
        ("fid", {"feature": "pixels"}, "The settings are num_images, num_reference, image_size, d"),
        ("FID", {}, "Did you mean 'fid'?"),
        (3, {}, "metrics is 3: name some of"),
        ([], {}, "metrics is []: name some of"),
        ("cmmd", {}, "not of the features pixels: take clip"),
        ("fid", {"features": 3}, "features is 3: it must be a text or a function"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_an_image_is_looked_at(
    pictures, looked_at, names, settings, says
):
    with pytest.raises(UsageError) as error:
        compare_images(*pictures, names, **{**PIXELS, **settings})
    assert says in str(error.value)
    assert not looked_at


def test_what_would_change_nothing_is_refused(pictures, tmp_path, looked_at):
    digits = [np.kron(p, np.ones((1, 2, 2, 1), np.uint8)) for p in pictures]
    for name, value in (("resize", "clean"), ("rounding", "nearest")):
        with pytest.raises(UsageError, match=f"{name} is '{value}', but images of 8x8 pixels"):
            compare_images(*digits, "fid", **DIGITS, **{name: value})
    with pytest.raises(UsageError, match="is looks at the images alone: leave the reference out"):
        compare_images(*digits, "is", **DIGITS)
    np.savez(tmp_path / "s.npz", mu=np.zeros(16), sigma=np.eye(16))
    with pytest.raises(UsageError, match="num_reference is 9, and there are no images"):
        compare_images(pictures[0], tmp_path / "s.npz", "fid", num_reference=9, **PIXELS)
    assert not looked_at
    large = np.kron(digits[1], np.ones((1, 2, 2, 1), np.uint8))
    assert compare_images(digits[0], large, "fid", **DIGITS, resize="clean")["fid"]["value"] > 0


def test_a_set_compared_with_itself_is_warned_of(pictures, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", pictures[0])
    compare_images(tmp_path / "a.npz", pictures[0], "kid", **PIXELS)
    assert capsys.readouterr().err.count("a set compared with itself") == 1
    compare_images(*pictures, "kid", **PIXELS)
    assert not capsys.readouterr().err


def test_a_reference_of_black_images_has_a_distance(pictures, capsys):
    black, grey = (np.full((20, 4, 4, 1), level, np.uint8) for level in (0, 77))
    squares = np.sum((pictures[0].reshape(60, 16) / 255) ** 2, axis=1)
    found = compare_images(pictures[0], black, "fid,kid,prdc", **PIXELS)
    assert found["fid"]["error"] == pytest.approx(squares.std(ddof=1) / np.sqrt(60), rel=1e-5)
    assert found["fid"]["more"]["expected"]["value"] == 0
    assert "perfect model" not in capsys.readouterr().err
    compare_images(grey, grey + 1, "fid", **PIXELS)
    assert "perfect model" not in capsys.readouterr().err
    both = compare_images(black, black, "fid", **PIXELS)["fid"]
    assert (both["value"], both["error"]) == (0, 0)


def test_sets_that_do_not_fit_are_refused(pictures, tmp_path, monkeypatch, looked_at):
    a, b = pictures
    np.savez(tmp_path / "nan.npz", mu=np.full(16, np.nan), sigma=np.eye(16))
    np.savez(tmp_path / "other.npz", mu=np.zeros(9), sigma=np.eye(9))
    np.savez(tmp_path / "skew.npz", mu=np.zeros(16), sigma=np.triu(np.ones((16, 16))))
    np.savez(tmp_path / "good.npz", mu=np.zeros(16), sigma=np.eye(16))
    for reference, names, says in (
        (None, "fid", "give a reference"),
        (b[:, :2], "fid", "images of one size"),
        (b.repeat(3, axis=3), "fid", "compare images all grey or all in colour."),
        ([1, 2], "fid", "A set of images is of type list: give a folder"),
        (tmp_path / "nan.npz", "fid", "not finite"),
        (tmp_path / "other.npz", "fid", "of 9 features, and the network computes 16"),
        (tmp_path / "skew.npz", "fid", "not symmetric"),
        (tmp_path / "good.npz", "kid", "mean and covariance alone"),
    ):
        with pytest.raises(UsageError) as error:
            compare_images(a, reference, names, **PIXELS)
        assert says in str(error.value)
    monkeypatch.setattr(host_memory, "available", lambda: 1000)
    with pytest.raises(UsageError, match="GiB of memory"):
        compare_images(a, b, "kid", **PIXELS)
    assert not looked_at


def test_a_function_of_python_is_called_and_named_but_not_cached(pictures, cache):
    """The same name may be another function the next time."""
    a, b = pictures
    for scale in (1, 2):

        def rows(images, scale=scale):
            return scale * images.mean(axis=2)[..., 0]

        found = compare_images(a, b, "fid", features=rows)["fid"]
        assert found["value"] == pytest.approx(scipy_fid(rows(a), rows(b)), rel=1e-5)
        assert found["network"]["name"] == f"{__name__}:{rows.__qualname__}"
        assert json.loads(json.dumps(found)) == found
    assert not cache.exists()


def test_cmmd_warns_of_features_of_another_length_than_1(pictures, capsys):
    def unit(images):
        rows = images.reshape(len(images), -1) + 1.0
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    compare_images(*pictures, "cmmd", features=unit)
    assert "length 1" not in capsys.readouterr().err
    compare_images(*pictures, "cmmd", features=lambda images: 3 * unit(images))
    assert "length 1, and the lengths of these are 3 to 3" in capsys.readouterr().err


def test_a_grey_picture_among_coloured_ones_is_named_where_they_do_not_fit(pictures, tmp_path):
    a, b = pictures
    folder = save_folder(tmp_path / "a", a[:6])
    Image.new("RGB", (4, 4), "red").save(folder / "003.png")
    for sides, settings, says in (
        ((folder, b), PIXELS, "all grey or all in colour"),
        ((b, folder), PIXELS, "all grey or all in colour"),
        ((folder, b), DIGITS, "as in resize clean"),
    ):
        with pytest.raises(UsageError) as error:
            compare_images(*sides, "fid", **settings)
        assert says in str(error.value)
        assert f"{folder / '000.png'} is grey and {folder / '003.png'} in" in str(error.value)


def test_value_and_error_have_one_notation():
    for pair, text in {
        (-642.244, 287.0): "-642.244 ± 290",
        (0.0126923, 3.16e-5): "0.0126923 ± 0.000032",
        (1.5, 0.25): "1.5 ± 0.25",
        (-6.42244e9, 2.87e6): "-6.42244e+09 ± 2.9e+06",
        (2.0, None): "2",
    }.items():
        assert with_spread(*pair) == text


def test_of_few_samples_the_distance_of_a_perfect_model_is_said(capsys):
    """Two sets of one distribution are about as far apart as the warning says."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (count, 2, 2, 1), np.uint8) for count in (30, 300))
    record = compare_images(a, b, "fid", **PIXELS)["fid"]
    said = capsys.readouterr().err
    assert "warning: 30 samples are few for 4 features" in said
    expected = record["more"]["expected"]["value"]
    assert f"about {expected:.3g}" in said
    values = [
        compare_images(rng.integers(0, 256, (30, 2, 2, 1), np.uint8), b, "fid", **PIXELS)["fid"]
        for _ in range(10)
    ]
    mean = np.mean([found["value"] for found in values])
    assert expected == pytest.approx(mean, rel=0.35)
    assert 0 < record["error"] < record["value"]


def test_distances_by_class_are_those_of_the_classes_alone(pictures, tmp_path, capsys):
    a, b = pictures
    labels = [np.arange(len(p)) % 2 for p in pictures]
    for name, p, of in zip("ab", pictures, labels, strict=True):
        np.savez(tmp_path / f"{name}.npz", p, of)
    found = compare_images(tmp_path / "a.npz", tmp_path / "b.npz", "fid_by_class", **PIXELS)
    results = found["fid_by_class"]["results"]
    for label in (0, 1):
        alone = compare_images(a[labels[0] == label], b[labels[1] == label], "fid", **PIXELS)
        assert results[f"fid_of_class_{label}"]["value"] == pytest.approx(
            alone["fid"]["value"], rel=1e-6
        )
        count = sum(labels[0] == label)
        variance = np.var(b / 255) * np.eye(16)  # as independent pixels have
        expected = expected_distance(variance, count, 25, draws=40)
        assert alone["fid"]["more"]["expected"]["value"] == pytest.approx(expected.value, rel=0.2)
        more = found["fid_by_class"]["more"]
        assert more["expected_of_classes"][f"fid_of_class_{label}"]["value"] == pytest.approx(
            expected.value, rel=0.2
        )
    said = capsys.readouterr().err
    assert f"would be about {more['expected']['value']:.3g}. Compare" in said
    assert "classes of as few as 30 samples are few for 16 features" in said
    assert "of a perfect model" in as_text(found["fid_by_class"]).splitlines()[1]
    for reference, says in ((b, "2 and none"), (tmp_path / "b.npz", "2 samples of each")):
        with pytest.raises(UsageError, match=says):
            compare_images(tmp_path / "a.npz", reference, "fid_by_class", num_images=3, **PIXELS)


def test_the_extrapolated_distance_is_below_that_of_the_samples(pictures):
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0, 256, (count, 2, 2, 1), np.uint8) for count in (60, 1000))
    found = compare_images(a, b, "fid,fid_infinity", **PIXELS)
    assert found["fid_infinity"]["value"] < found["fid"]["value"]
    with pytest.raises(UsageError, match="more than 20 samples"):
        compare_images(a, b, "fid_infinity", num_images=20, **PIXELS)


def test_the_statistics_in_a_file_of_openai_are_of_more_images_than_it_has(
    pictures, tmp_path, monkeypatch
):
    from ddpm_jax.evaluation.features import Extracted, FeatureNetwork
    from ddpm_jax.measuring import image_comparison

    def mean_rows(images):
        return Extracted(images.mean(axis=2)[..., 0].astype(np.float32))

    network = FeatureNetwork("inception", 4, mean_rows, {"sha256": "0" * 64})
    monkeypatch.setattr(image_comparison, "load_features", lambda *args, **kwargs: network)
    a, b = pictures
    x, y = (mean_rows(p).features.astype(np.float64) for p in pictures)
    np.savez(tmp_path / "b.npz", arr_0=b[:9], mu=y.mean(0), sigma=np.cov(y, rowvar=False))
    found = compare_images(a, tmp_path / "b.npz", "fid,prdc")
    assert found["fid"]["value"] == pytest.approx(scipy_fid(x, y), rel=1e-6)
    assert found["fid"]["reference"]["statistics"]["kind"] == "statistics"
    assert found["prdc"]["num_reference"] == 9
    smaller = compare_images(a, tmp_path / "b.npz", "fid", image_size=2)
    assert "statistics" not in smaller["fid"]["reference"], "they are not of the shrunk images"
