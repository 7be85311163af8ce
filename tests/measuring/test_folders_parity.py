"""Two folders of PNGs through `compare_images` and through torch-fidelity, pytorch-fid and
clean-fid as their users call them, with the same random Inception weights: reading, resizing,
network and metrics together. Needs `pip install torch torchvision torch-fidelity pytorch-fid
clean-fid`."""

import re

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.interop.torch_writing import write_torch
from ddpm_jax.measuring.image_comparison import compare_images

from ..interop.inception_files import random_state

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of other projects' code
COUNT = 20
HEIGHT, WIDTH = 40, 48
# the last layers of the last block, whose averages are the features
LAST = re.compile(r"Mixed_7c\.branch(1x1|3x3_2.|3x3dbl_3.|_pool)\.bn\.(weight|bias)")
# where pytorch-fid and clean-fid look for the weights, below $TORCH_HOME
PUBLISHED = "hub/checkpoints/pt_inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of PNGs of blots, whose brightness and contrast vary otherwise in each."""
    rng = np.random.default_rng(0)
    places = []
    for name, mean, deviation, blot in (("a", 110, 25, 8), ("b", 150, 35, 4)):
        place = tmp_path_factory.mktemp(name)
        size = (COUNT, HEIGHT // blot, WIDTH // blot, 3)
        blots = rng.normal(0, 1, size).repeat(blot, axis=1).repeat(blot, axis=2)
        brightness, contrast = rng.normal(mean, deviation, (2, COUNT, 1, 1, 1))
        pixels = np.clip(brightness + contrast / 4 * blots, 0, 255).astype(np.uint8)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(place / f"{i:02d}.png")
        places.append(str(place))
    return places


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory):
    """A $TORCH_HOME in which the weights lie as if they had been downloaded.

    Features are near 1, as those of the published weights: torch-fidelity's kernels are float32.
    """
    home = tmp_path_factory.mktemp("torch")
    (home / PUBLISHED).parent.mkdir(parents=True)
    state = random_state()
    state |= {name: value / 10 for name, value in state.items() if LAST.fullmatch(name)}
    write_torch(home / PUBLISHED, state | {"fc.weight": state["fc.weight"] * 10})
    return home


@pytest.fixture
def compare(folders, torch_home, tmp_path):
    """Compare the folders by our own command's function."""
    # Its name promises another digest, and so it would be refused.
    weights = tmp_path / "inception.pth"
    weights.symlink_to(torch_home / PUBLISHED)

    def run(metrics, **settings):
        return compare_images(
            *folders,
            metrics,
            features="inception",
            feature_weights=str(weights),
            feature_batch_size=COUNT,
            **settings,
        )

    return run


def test_numbers_are_those_of_torch_fidelity(compare, folders, torch_home):
    torch_fidelity = pytest.importorskip("torch_fidelity")
    wanted = torch_fidelity.calculate_metrics(
        input1=folders[0],
        input2=folders[1],
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        feature_extractor="inception-v3-compat",  # its precision and recall are else of VGG16
        feature_extractor_weights_path=str(torch_home / PUBLISHED),
        kid_subsets=1,
        kid_subset_size=COUNT,  # all pairs
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # in this process
        verbose=False,
    )
    found = compare("fid,kid,is,prdc")
    shares = {name: share["value"] for name, share in found["prdc"]["results"].items()}
    assert found["fid"]["value"] == pytest.approx(wanted["frechet_inception_distance"], rel=1e-4)
    kid = wanted["kernel_inception_distance_mean"]
    assert found["kid"]["value"] == pytest.approx(kid, abs=1e-6)
    score = wanted["inception_score_mean"], wanted["inception_score_std"]
    assert (found["is"]["value"], found["is"]["error"]) == pytest.approx(score, rel=0, abs=1e-6)
    assert 0 < wanted["precision"] * wanted["recall"] < 1
    assert shares["precision"] == pytest.approx(wanted["precision"], abs=1e-6)
    assert shares["recall"] == pytest.approx(wanted["recall"], abs=1e-6)


def test_distances_are_those_of_pytorch_fid(compare, folders, torch_home, monkeypatch):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    wanted = fid_score.calculate_fid_given_paths(folders, COUNT, "cpu", 2048, num_workers=0)
    found = compare("fid", resize="pytorch_bilinear")["fid"]["value"]
    assert found == pytest.approx(wanted, rel=1e-4)


def test_distances_are_those_of_clean_fid(compare, folders, torch_home, monkeypatch):
    """Its TorchScript file cannot be drawn: pytorch-fid's network stands for what is in it."""
    inception = pytest.importorskip("pytorch_fid.inception")
    cleanfid = pytest.importorskip("cleanfid.fid")
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    network = inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    monkeypatch.setattr(
        cleanfid,
        "build_feature_extractor",
        lambda *_, **__: lambda x: network((x - 128) / 128)[0].flatten(1),
    )
    settings = {"mode": "clean", "device": "cpu", "num_workers": 0, "verbose": False}
    wanted = cleanfid.compute_fid(*folders, **settings)
    found = compare("fid,kid", resize="clean")
    kid = cleanfid.compute_kid(*folders, **settings)
    assert found["fid"]["value"] == pytest.approx(wanted, rel=1e-4)
    assert found["kid"]["value"] == pytest.approx(kid, abs=1e-6)
