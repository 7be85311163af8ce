"""LPIPS against PyTorch with the same random weights, and the file of its weights.

The reference is written from the paper with PyTorch's own layers; it was compared with the authors'
package `lpips` 0.1.4 (version 0.1, net "vgg") once, which also needs torchvision.
"""

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.interop.lpips_weights import lpips_params, lpips_shapes, read_lpips
from ddpm_jax.models.lpips import Lpips

WIDE = Lpips(channels=((8, 8), (128, 128), (128, 128, 128), (128, 128, 128), (128, 128, 128)))
SMALL = Lpips(channels=((4, 6), (5, 7), (8, 6, 8), (9, 8, 7), (6, 6, 5)))
NARROW_FIRST = "features.0.weight"


def random_tensors(model, seed=0):
    """Return name -> array in the names and layouts of torchvision and lpips.

    They are so large that features neither grow nor vanish.
    """
    rng = np.random.default_rng(seed)
    tensors, inputs, n = {}, 3, 0
    for k, channels in enumerate(model.channels):
        for features in channels:
            deviation = np.sqrt(2 / (9 * inputs))
            tensors[f"features.{n}.weight"] = rng.normal(
                0, deviation, (features, inputs, 3, 3)
            ).astype(np.float32)
            tensors[f"features.{n}.bias"] = rng.normal(0, 0.1, features).astype(np.float32)
            inputs, n = features, n + 2
        n += 1
        tensors[f"lin{k}.model.1.weight"] = rng.uniform(0, 1, (1, inputs, 1, 1)).astype(np.float32)
    return tensors


def images(size, channels=3, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (2, 3, *size, channels)).astype(np.float32)


def program(model):
    return jax.jit(lambda params, x, y: model.apply({"params": params}, x, y))


def reference(tensors, model, x, y):
    """The same by PyTorch, from images of our layout."""
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install -e '.[parity]'"
    )
    functional = torch.nn.functional
    weights = {name: torch.tensor(value) for name, value in tensors.items()}

    def slices(image):
        h = image.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        h = (h - torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[None, :, None, None]
        n = 0
        for k, channels in enumerate(model.channels):
            h = functional.max_pool2d(h, kernel_size=2, stride=2) if k else h
            for _ in channels:
                h = functional.conv2d(
                    h, weights[f"features.{n}.weight"], weights[f"features.{n}.bias"], padding=1
                ).relu()
                n += 2
            n += 1
            yield h / (h.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)

    x, y, total = torch.tensor(x), torch.tensor(y, requires_grad=True), 0
    for k, (a, b) in enumerate(zip(slices(x), slices(y), strict=True)):
        weighted = functional.conv2d((a - b).square(), weights[f"lin{k}.model.1.weight"])
        total = total + weighted.mean(dim=(1, 2, 3))
    total.sum().backward()
    return total.detach().numpy(), y.grad.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "channels"),
    [(SMALL, (32, 48), 3), (SMALL, (37, 19), 1), (WIDE, (16, 32), 3)],
    ids=[
        "several pixels in each slice",
        "grey, odd sides",
        "so wide that convolutions are Winograd's",
    ],
)
def test_the_distance_is_that_of_pytorch(model, size, channels):
    tensors, (x, y) = random_tensors(model), images(size, channels)
    distance = program(model)(lpips_params(tensors, model, source="the test"), x, y)
    assert distance.shape == (3,)
    assert np.all(distance > 0.1)
    # float32 sums in another order, thirteen layers deep
    np.testing.assert_allclose(distance, reference(tensors, model, x, y)[0], rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_is_that_of_pytorch():
    tensors, (x, y) = random_tensors(SMALL), images((32, 48))
    params = lpips_params(tensors, SMALL, source="the test")
    gradient = jax.jit(jax.grad(lambda y: program(SMALL)(params, x, y).sum()))(y)
    _, expected = reference(tensors, SMALL, x, y)
    # of the whole: a ReLU or a maximum that is all but undecided may be decided differently
    assert np.linalg.norm(gradient - expected) < 0.01 * np.linalg.norm(expected)


def test_the_names_are_those_of_torchvisions_vgg16():
    names = [f"features.{n}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
    tensors = random_tensors(Lpips())
    assert {name.rpartition(".")[0] for name in tensors if name.startswith("features")} == set(
        names
    )
    shapes = lpips_shapes(Lpips())
    # torchvision's published 138,357,544 of VGG16 less its three linear maps, and lpips's five
    # vectors
    maps = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert sum(map(np.prod, shapes.values())) == 138_357_544 - maps + 64 + 128 + 256 + 512 + 512


def test_the_authors_names_and_other_tensors_beside_them_are_the_same_weights():
    tensors = random_tensors(SMALL)
    theirs = {
        "scaling_layer.shift": np.zeros((1, 3, 1, 1)),
        "lins.0.model.1.weight": np.zeros(4),
        "classifier.0": np.ones(2),
    }
    theirs |= {name.replace("features.", "net.slice3."): value for name, value in tensors.items()}
    jax.tree.map(
        np.testing.assert_array_equal,
        lpips_params(theirs, SMALL, source="the test"),
        lpips_params(tensors, SMALL, source="the test"),
    )


def test_npz_and_safetensors_are_read_alike(tmp_path):
    tensors = random_tensors(SMALL)
    np.savez(tmp_path / "weights.npz", **tensors)
    expected = lpips_params(tensors, SMALL, source="the test")
    jax.tree.map(
        np.testing.assert_array_equal, read_lpips(tmp_path / "weights.npz", SMALL), expected
    )
    numpy = pytest.importorskip(
        "safetensors.numpy", reason="safetensors is not installed: pip install -e '.[parity]'"
    )
    numpy.save_file(tensors, tmp_path / "weights.safetensors")
    jax.tree.map(
        np.testing.assert_array_equal, read_lpips(tmp_path / "weights.safetensors", SMALL), expected
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.pop(NARROW_FIRST),
            r"has no tensor features\.0\.weight, which .*docs/first_stages\.md",
        ),
        (
            lambda t: t.update({NARROW_FIRST: t[NARROW_FIRST][:3]}),
            r"features\.0\.weight .*\(3, 3, 3, 3\), .*\(3, 3, 3, 4\)",
        ),
        (lambda t: t.pop("lin3.model.1.weight"), r"has no tensor lin3\.model\.1\.weight"),
        (
            lambda t: t.update({"lin3.model.1.weight": -t["lin3.model.1.weight"]}),
            r"lin3.* negative weights",
        ),
        (
            lambda t: t.update({NARROW_FIRST: t[NARROW_FIRST] * np.nan}),
            r"features\.0\.weight of .*npz holds nan",
        ),
    ],
)
def test_what_is_wrong_with_the_tensors_is_named(tmp_path, change, words):
    tensors = random_tensors(SMALL)
    change(tensors)
    np.savez(tmp_path / "weights.npz", **tensors)
    with pytest.raises(UsageError, match=words):
        read_lpips(tmp_path / "weights.npz", SMALL)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "missing.npz",
            None,
            r"cannot be read from .*missing\.npz \(No such file or directory\): "
            r"docs/first_stages\.md",
        ),
        ("cut.npz", b"PK\x03\x04", "is a damaged NPZ file"),
        ("weights.pth", b"\x80\x02}q\x00.", "neither an NPZ nor a whole safetensors file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_lpips(tmp_path / name, SMALL)
