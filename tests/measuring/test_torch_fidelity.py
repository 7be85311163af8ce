"""Two folders through the whole of `compare_images` and through torch-fidelity's own
`calculate_metrics`, with the same Inception weights, random ones: reading, resizing, network and
metrics together."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.measuring.image_comparison import compare_images

from ..interop.inception_files import random_state

COUNT = 24


@pytest.fixture
def folders(tmp_path):
    """Two folders of pictures of two sizes of blots, 48x48 RGB."""
    rng = np.random.default_rng(0)
    for name, blot in (("a", 6), ("b", 12)):
        (tmp_path / name).mkdir()
        small = rng.integers(0, 256, (COUNT, 48 // blot, 48 // blot, 3), np.uint8)
        for i, image in enumerate(small.repeat(blot, axis=1).repeat(blot, axis=2)):
            Image.fromarray(image).save(tmp_path / name / f"{i:02d}.png")
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of another project's code
def test_numbers_are_those_of_torch_fidelity(folders, tmp_path):
    torch = pytest.importorskip("torch")
    torch_fidelity = pytest.importorskip("torch_fidelity")
    path = tmp_path / "weights.pth"
    torch.save({name: torch.from_numpy(np.array(x)) for name, x in random_state().items()}, path)
    a, b = folders
    wanted = torch_fidelity.calculate_metrics(
        input1=str(a),
        input2=str(b),
        fid=True,
        isc=True,
        prc=True,
        cuda=False,
        batch_size=8,
        verbose=False,
        cache=False,
        save_cpu_ram=True,  # no processes of workers
        samples_find_deep=True,
        feature_extractor_weights_path=str(path),
    )
    found = compare_images(
        a,
        b,
        "fid,is,prdc",
        features="inception",
        feature_weights=str(path),
        feature_batch_size=8,
        feature_cache="none",
    )
    assert found["fid"]["value"] == pytest.approx(wanted["frechet_inception_distance"], rel=1e-3)
    assert found["is"]["value"] == pytest.approx(wanted["inception_score_mean"], rel=1e-4)
    shares = found["prdc"]["results"]
    assert shares["precision"]["value"] == pytest.approx(wanted["precision"])
    assert shares["recall"]["value"] == pytest.approx(wanted["recall"])
