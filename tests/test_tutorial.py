"""The tutorial's code runs at a small size, draws its pictures and finds what its text says."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

DOCS = pathlib.Path(__file__).parents[1] / "docs"
spec = importlib.util.spec_from_file_location("tutorial", DOCS / "tutorial.py")
tutorial = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tutorial)
TEXT = (DOCS / "tutorial.md").read_text()
SMALL = {
    "num_examples": 512,
    "chain_lengths": (20, 100),
    "bound_draws": 2**17,
    "plain_draws": 2**16,
    "controlled_draws": 2**15,
    "path_times": (0, 999),
    "batch_size": 128,
    "updates_at_once": 100,
    "checkpoints": (100, 500),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    images = tmp_path_factory.mktemp("images")
    # The text is read with the rules of NumPy, by which its reader's JAX broadcasts.
    with jax.numpy_rank_promotion("allow"):
        outputs, names = tutorial.run(TEXT, {**SMALL, "images": images})
    return outputs, names, images


@pytest.mark.slow
def test_every_picture_of_the_text_is_made_and_no_other(small):
    shown = set(tutorial.re.findall(r"\(images/(tutorial_\w+\.png)\)", TEXT))
    made = {path.name for path in small[2].iterdir()}
    assert made == shown == {path.name for path in (DOCS / "images").glob("tutorial_*.png")}
    for name in made:
        with Image.open(small[2] / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
        assert (DOCS / "images" / name).stat().st_size < 120_000


@pytest.mark.slow
def test_the_blocks_print_what_the_text_shows_but_for_the_digits(small):
    """The same lines in the same places; numbers and rows differ at the small size."""
    shown = [block["output"] for block in tutorial.BLOCK.finditer(TEXT)]
    assert [bool(output) for output in small[0]] == [output is not None for output in shown]
    for printed, text in zip(small[0], shown, strict=True):
        if printed:
            assert printed.splitlines()[0].split(":")[0] == text.splitlines()[2].split(":")[0]


@pytest.mark.slow
def test_the_oracles_numbers_are_right_at_any_size(small):
    names = small[1]
    density_error = (
        np.abs(names["solved"].log_prob - names["true_log_prob"]) * names["bits_per_dim"]
    )
    assert density_error.max() < 1e-3
    assert np.abs(names["back"] - names["x"]).max() < 0.01
    means, errors = np.array(names["bounds"]).T
    assert np.all(means > 4 * errors)  # the bound is above the entropy
    assert means[1] < means[0]
    kl, kl_error = np.array(names["gaps"]["fixed_large"]).T
    assert abs(means[1] - kl[1]) < 4 * np.hypot(errors[1], kl_error[1])


@pytest.mark.slow
def test_the_network_approaches_the_oracle(small):
    names = small[1]
    assert names["errors"][-1] < names["errors"][0] < 0.2
    assert names["bound_excess"][-1][0] < names["bound_excess"][0][0]
    assert names["flow_excess"][-1][0] < names["flow_excess"][0][0]


def test_a_setting_that_the_text_does_not_have_is_refused():
    with pytest.raises(KeyError, match="sise"):
        tutorial.run("```python\nsize = 1\n```\n", {"sise": 2})


def test_outputs_are_put_below_their_blocks_once():
    text = "a\n\n```python\nsize = 2\n```\n\n```python\nprint(size)\n```\n\nb\n"
    outputs, names = tutorial.run(text, {"size": 3})
    assert outputs == ["", "3\n"]
    assert names["size"] == 3
    once = tutorial.with_outputs(text, outputs)
    assert once == text.replace("print(size)\n```\n", "print(size)\n```\n\n```text\n3\n```\n")
    assert tutorial.with_outputs(once, outputs) == once
