"""The docs name things that exist, and their commands parse."""

import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _resolve(dotted: str) -> object:
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_name_in_the_docs_exists(path):
    text = path.read_text()
    for dotted in sorted(set(re.findall(r"`(ddpm_jax(?:\.\w+)+)(?:\(\))?`", text))):
        _resolve(dotted)


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_file_in_the_docs_exists(path):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_config_and_benchmark_in_the_docs_exists(path):
    for name in re.findall(r"\b((?:configs|benchmarks)/\w+\.py)\b", path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_the_check_of_names_can_fail():
    with pytest.raises(AttributeError):
        _resolve("ddpm_jax.diffusion.gaussian.q_smaple")


def test_the_python_of_the_readme_makes_images():
    """With a stand-in for the network, which the reader is to bring; docs/samplers.md goes on with its names."""

    class Unet:
        def apply(self, variables, x_t, time):
            return x_t * variables["params"]

    names = {"unet": Unet(), "params": 0.9}
    for path in (ROOT / "README.md", ROOT / "docs" / "samplers.md"):
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL):
            exec(block, names)
    assert names["images"].shape == (16, 32, 32, 3)
    assert abs(names["images"]).max() <= 1
    assert names["samples"].shape == (16, 32, 32, 3)
