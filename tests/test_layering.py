"""No layer imports a higher one: the imports of every file against the table `LAYERS`."""

import ast
import pathlib
import sys

import pytest

import ddpm_jax

PACKAGE = pathlib.Path(ddpm_jax.__file__).parent
LAYERS = {
    "errors": 0,
    "files": 0,
    "archives": 0,
    "randomness": 0,
    "separate_calls": 0,
    "threefry": 0,
    "host_memory": 0,
    "numerals": 0,
    "limits": 0,
    "annotations": 0,
    "settings": 0,
    "schema": 0,
    "locks": 0,
    "memory": 0,
    "diffusion": 1,
    "samplers": 1,
    "variational": 1,
    "models": 2,
    "data": 2,
    "distributed": 3,
    "checkpoints": 4,
    "monitoring": 4,
    "training": 5,
    "generation": 4,
    "evaluation": 5,
    "interop": 5,
    "plotting": 5,
    "text": 6,
    "families": 6,
    "experiments": 7,
    "tasks": 8,
    "measuring": 9,
    "training_runs": 10,
    "api": 11,
    "cli": 12,
}
PURE = ("diffusion", "samplers", "variational")
PURE_MAY_IMPORT = {"jax", "numpy", "chex", "ddpm_jax"}
STRANGERS = {("models", "data"), ("data", "models")}
NOWHERE = {"torch", "torchvision", "tensorflow", "diffusers", "transformers"}
ONLY_IN = {  # library -> where it may be imported: a folder, or one file
    "ml_collections": ("cli/", "experiments/", "tasks/", "training_runs/", "api.py"),
    "absl": "cli/",
    "orbax": "checkpoints/",
    "tensorstore": "checkpoints/",
    "matplotlib": "plotting/",
    "diffrax": "evaluation/flow_density.py",
    "huggingface_hub": "interop/hub.py",
    "wandb": "monitoring/weights_and_biases.py",
    "tokenizers": "text/tokenizer.py",
    "tensorboardX": "monitoring/tensorboard.py",
}
MAY_PRINT = {"errors.py", "cli/__init__.py", "monitoring/progress.py"}
STANDARD_LIBRARY = set(sys.stdlib_module_names)


def imports(tree):
    """Every module a file imports, at the top or inside a function: ("jax.lax", line)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            # `from ddpm_jax import models` names its module behind the import
            if module == "ddpm_jax":
                yield from ((f"ddpm_jax.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def violations(name, source):
    """Return sentences about the wrong imports and calls of the file `name`."""
    tree = ast.parse(source)
    own = name.split("/")[0].removesuffix(".py")
    found = [
        f"{name}:{line} {why}"
        for module, line in imports(tree)
        for why in _forbidden(name, own, module)
    ]
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    found += [
        f"{name}:{node.lineno} imports relatively, which hides its layer" for node in relative
    ]
    return found + [f"{name}:{line} {why}" for line, why in _calls(name, own, tree)]


def _forbidden(name, own, module):
    top = module.split(".")[0]
    if top in NOWHERE:
        yield f"imports {top}"
    if not name.startswith(ONLY_IN.get(top, "")):
        yield f"imports {top}, which belongs to {ONLY_IN[top]}"
    if own in PURE and top not in PURE_MAY_IMPORT | STANDARD_LIBRARY:
        yield f"imports {top} into pure mathematics"
    other = module.split(".")[1] if module.startswith("ddpm_jax.") else None
    if other in LAYERS and own in LAYERS:
        if LAYERS[other] > LAYERS[own]:
            yield f"imports {module}, of a higher layer"
        if (own, other) in STRANGERS:
            yield f"imports {module}: models and data do not know each other"


def _calls(name, own, tree):
    for node in ast.walk(tree):
        attribute = node.attr if isinstance(node, ast.Attribute) else None
        imported = (
            {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
        )
        of_jax = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax"
        uses = attribute == "pmap" and getattr(node.value, "id", "") == "jax"
        if (uses or (of_jax and "pmap" in imported)) and name != "distributed/pmap.py":
            yield node.lineno, "uses pmap, which belongs to distributed/pmap.py"
        if (
            attribute == "key"
            and getattr(node.value, "attr", None) == "random"
            and name != "randomness.py"
        ):
            yield node.lineno, "makes a key, which belongs to randomness.py"
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") == "print"
            and name not in MAY_PRINT
        ):
            yield node.lineno, "prints, where `say` of errors.py shows what a terminal would obey"
        if (
            own in PURE
            and (attribute == "scan" or "scan" in imported)
            and name != "samplers/loop.py"
        ):
            yield node.lineno, "scans over timesteps, which belongs to samplers/loop.py"


FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("name", FILES)
def test_file_keeps_to_its_layer(name):
    found = violations(name, (PACKAGE / name).read_text())
    assert found == []


def test_every_folder_has_a_layer_and_says_what_belongs_there():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = {
        "errors",
        "files",
        "api",
        "archives",
        "host_memory",
        "randomness",
        "locks",
        "memory",
        "numerals",
        "limits",
        "annotations",
        "settings",
        "schema",
        "separate_calls",
        "threefry",
    }
    assert folders == set(LAYERS) - files
    assert all(ast.get_docstring(ast.parse((PACKAGE / name).read_text())) for name in FILES)


def test_the_sampling_loop_is_the_only_scan_and_there_is_exactly_one():
    tree = ast.parse((PACKAGE / "samplers/loop.py").read_text())
    assert (
        sum(isinstance(node, ast.Attribute) and node.attr == "scan" for node in ast.walk(tree)) == 1
    )


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("models/bad.py", "from ddpm_jax.training import ema", "higher layer"),
        ("models/bad.py", "import ddpm_jax.training.ema", "higher layer"),
        ("models/bad.py", "from ddpm_jax import cli", "higher layer"),
        ("models/bad.py", "from ddpm_jax.data import images", "do not know each other"),
        (
            "data/bad.py",
            "def f():\n    from ddpm_jax.models.unet import UNet",
            "do not know each other",
        ),
        ("diffusion/bad.py", "import flax.linen as nn", "pure mathematics"),
        ("samplers/bad.py", "from scipy import integrate", "pure mathematics"),
        ("errors.py", "from ddpm_jax.diffusion import losses", "higher layer"),
        ("training/bad.py", "from ml_collections import ConfigDict", "imports ml_collections"),
        ("training/bad.py", "import orbax.checkpoint as ocp", "belongs to checkpoints/"),
        ("evaluation/bad.py", "import jax\nf = jax.pmap(g)", "belongs to distributed/pmap.py"),
        ("evaluation/bad.py", "from jax import pmap", "belongs to distributed/pmap.py"),
        ("training/bad.py", "import matplotlib.pyplot as plt", "belongs to plotting/"),
        ("evaluation/bad.py", "import jax\nkey = jax.random.key(0)", "belongs to randomness.py"),
        ("samplers/bad.py", "import jax\njax.lax.scan(f, x, xs)", "belongs to samplers/loop.py"),
        ("interop/bad.py", "def f():\n    import torch", "imports torch"),
        ("data/bad.py", "import tensorflow as tf", "imports tensorflow"),
        ("models/bad.py", "from . import layers", "relatively"),
        ("cli/bad.py", "print(name)", "where `say` of errors.py"),
    ],
)
def test_the_checker_sees_a_bad_file(name, source, complaint):
    assert any(complaint in found for found in violations(name, source))


def test_the_checker_lets_a_good_file_pass():
    source = (
        "import functools\nimport jax\nimport numpy as np\nfrom ddpm_jax.errors import choose\n"
    )
    assert violations("diffusion/good.py", source) == []
    assert (
        violations("cli/good.py", "from absl import flags\nfrom ddpm_jax.training import ema") == []
    )
