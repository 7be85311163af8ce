"""Checkpoints of DiT's authors, against diffusers' network with the authors' embedding of time.

The names and the order of q, k and v are written here by hand from the authors' code.
"""

import pathlib

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UsageError
from ddpm_jax.families.dit_checkpoints import recognise
from ddpm_jax.families.foreign import Request
from ddpm_jax.interop.containers import Container
from ddpm_jax.models.condition import Condition
from ddpm_jax.models.dit import position_embedding

HIDDEN, HEADS, DEPTH, CLASSES, SIDE = 32, 2, 2, 5, 4  # SIDE tokens of 2x2 pixels
PIXELS = Request(fields={"dit.num_heads": HEADS})


def shapes(channels=3, out_channels=6, hidden=HIDDEN, depth=DEPTH, rows=CLASSES + 1, side=SIDE):
    """Return the names in the authors' code and the shapes of their tensors."""

    def linear(name, out, inputs):
        return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}

    found = {
        "pos_embed": (1, side**2, hidden),
        "x_embedder.proj.weight": (hidden, channels, 2, 2),
        "x_embedder.proj.bias": (hidden,),
        **linear("t_embedder.mlp.0", hidden, 256),
        **linear("t_embedder.mlp.2", hidden, hidden),
        "y_embedder.embedding_table.weight": (rows, hidden),
        **linear("final_layer.linear", 4 * out_channels, hidden),
        **linear("final_layer.adaLN_modulation.1", 2 * hidden, hidden),
    }
    for i in range(depth):
        found |= {
            **linear(f"blocks.{i}.attn.qkv", 3 * hidden, hidden),
            **linear(f"blocks.{i}.attn.proj", hidden, hidden),
            **linear(f"blocks.{i}.mlp.fc1", 4 * hidden, hidden),
            **linear(f"blocks.{i}.mlp.fc2", hidden, 4 * hidden),
            **linear(f"blocks.{i}.adaLN_modulation.1", 6 * hidden, hidden),
        }
    return found


def draw(**sizes):
    """Return a state dict of normal numbers."""
    rng = np.random.default_rng(0)
    drawn = {
        name: (rng.normal(size=shape) * shape[-1] ** -0.5).astype(np.float32)
        for name, shape in shapes(**sizes).items()
    }
    return drawn | {"pos_embed": position_embedding(SIDE, SIDE, HIDDEN)[None]}


@pytest.fixture(scope="module")
def tensors():
    return draw()


def of(tensors, **groups):
    return Container(pathlib.Path("dit.pt"), "a file of PyTorch", groups or {"": tensors}, {})


def renamed_for_diffusers(tensors):
    """Return the tensors in diffusers' names."""
    top = {
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.linear": "proj_out_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
    }
    inner = {
        "attn.proj": "attn1.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
        "adaLN_modulation.1": "norm1.linear",
    }
    embedders = {
        "t_embedder.mlp.0": "timestep_embedder.linear_1",
        "t_embedder.mlp.2": "timestep_embedder.linear_2",
        "y_embedder.embedding_table": "class_embedder.embedding_table",
    }
    theirs = {"pos_embed.pos_embed": tensors["pos_embed"]}
    for kind in ("weight", "bias"):
        for ours, name in top.items():
            theirs[f"{name}.{kind}"] = tensors[f"{ours}.{kind}"]
        for i in range(DEPTH):
            block = f"transformer_blocks.{i}"
            for ours, name in inner.items():
                theirs[f"{block}.{name}.{kind}"] = tensors[f"blocks.{i}.{ours}.{kind}"]
            qkv = tensors[f"blocks.{i}.attn.qkv.{kind}"]
            for j, part in enumerate("qkv"):
                rows = slice(j * HIDDEN, (j + 1) * HIDDEN)
                theirs[f"{block}.attn1.to_{part}.{kind}"] = qkv[rows]
            for ours, name in embedders.items():
                if f"{ours}.{kind}" in tensors:
                    theirs[f"{block}.norm1.emb.{name}.{kind}"] = tensors[f"{ours}.{kind}"]
    return theirs


def outputs_of_diffusers(tensors, x, t, labels):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HIDDEN // HEADS,
        in_channels=3,
        out_channels=6,
        num_layers=DEPTH,
        sample_size=2 * SIDE,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    ).eval()
    state = {name: torch.tensor(x) for name, x in renamed_for_diffusers(tensors).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert (missing, unexpected) in (([], []), ([], ["pos_embed.pos_embed"]))
    network.pos_embed.pos_embed.copy_(state["pos_embed.pos_embed"])
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # cosines to just above 1/10000
    with torch.no_grad():
        x = torch.tensor(x.transpose(0, 3, 1, 2))
        out = network(x, timestep=torch.tensor(t), class_labels=torch.tensor(labels)).sample
    return out.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("kind", ["formula", "table"])
def test_outputs_are_those_of_the_authors_network(tensors, imported, kind):
    if kind == "table":  # as a moving average leaves it
        tensors = tensors | {"pos_embed": tensors["pos_embed"] * np.float32(1 + 3e-4)}
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
    t, labels = np.array([0, 7, 60]), np.array([0, 4, 5])
    expected = outputs_of_diffusers(tensors, x, t, labels)
    foreign = recognise(of(tensors), PIXELS)
    assert foreign.fields["dit.positions"] == kind
    model, params = imported(foreign, PIXELS)
    apply = jax.jit(
        lambda params: model.network.apply({"params": params}, x, t, Condition(label=labels))
    )
    np.testing.assert_allclose(apply(params["raw"]), expected, rtol=0, atol=1e-5)
    back = foreign.write(params["raw"], model.network)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_positions_of_the_authors_formula_are_ours_to_the_last_bit():
    """Theirs: a grid in float32, frequencies 1 / 10000^x and sines in float64, then rounded."""
    for side, features in ((16, 1152), (32, 1152), (16, 384)):
        frequencies = 1 / 10000 ** (np.arange(features // 4) / (features / 4))
        columns, rows = np.meshgrid(*2 * (np.arange(side, dtype=np.float32),))
        halves = []
        for grid in (columns, rows):
            angles = np.einsum("m,d->md", grid.reshape(-1), frequencies)
            halves += [np.sin(angles), np.cos(angles)]
        expected = np.concatenate(halves, axis=1).astype(np.float32)
        np.testing.assert_array_equal(position_embedding(side, side, features), expected)


def test_a_table_of_positions_gets_no_gradient(tensors, imported):
    moved = tensors | {"pos_embed": tensors["pos_embed"] + np.float32(0.5)}
    model, params = imported(recognise(of(moved), PIXELS), PIXELS)
    x, condition = np.ones((1, 8, 8, 3), np.float32), Condition(label=np.array([1]))

    def loss(params):
        out = model.network.apply({"params": params}, x, np.array([3]), condition)
        return (out**2).mean()

    gradients = jax.jit(jax.grad(loss))(params["raw"])
    assert not np.any(gradients["position_embedding"])
    assert np.any(gradients["patch_embedding"]["kernel"])


def test_what_the_files_say_and_what_is_assumed(tensors):
    foreign = recognise(of(tensors), PIXELS)
    assert foreign.fields["data.image_size"] == 2 * SIDE
    assert foreign.fields["condition.num_classes"] == CLASSES
    assert foreign.fields["diffusion.variance"] == "learned_range"
    assert foreign.assumed["condition.null_class"].value is True
    assert (foreign.fields["dit.size"], foreign.fields["dit.depth"]) == ("custom", DEPTH)
    all_classes = recognise(of(tensors), Request(fields={"condition.num_classes": CLASSES + 1}))
    assert all_classes.fields["condition.num_classes"] == CLASSES + 1
    assert all_classes.assumed["condition.null_class"].value is False
    fixed = recognise(of(draw(out_channels=3)), PIXELS)
    assert fixed.assumed["diffusion.variance"].value == "fixed_large"
    both = recognise(of(None, model=tensors, ema=tensors), PIXELS)
    assert list(both.weights) == ["raw", "ema"]


def released(side):
    """Return the tensors of DiT-XL/2 as zeros that take no memory."""
    sizes = shapes(4, 8, hidden=1152, depth=28, rows=1001, side=side)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in sizes.items()}


LATENTS = {"first_stage.ckpt": "runs/sd_vae"}


@pytest.mark.parametrize(("side", "size"), [(16, 256), (32, 512)])
def test_the_released_models_are_known_by_their_sizes(side, size):
    foreign = recognise(of(released(side)), Request(fields=LATENTS))
    assert foreign.released_as == f"DiT-XL/2 on ImageNet at {size}x{size}"
    assert foreign.assumed["dit.size"].value == "XL"
    assert foreign.assumed["data.image_size"].value == size
    assert foreign.assumed["first_stage.latent_scale"].value == 0.18215
    assert foreign.fields["data.channels"] == 3
    named = recognise(of(released(side)), Request(fields=LATENTS, preset=f"dit_xl2_{size}"))
    assert named.released_as == foreign.released_as


def test_a_network_over_latents_asks_for_the_first_stage():
    with pytest.raises(UsageError, match=r"import-first-stage .* the field first_stage\.ckpt"):
        recognise(of(released(16)), Request())


def without(tensors, name):
    return {other: value for other, value in tensors.items() if other != name}


@pytest.mark.parametrize(
    ("change", "request_", "message"),
    [
        ({"pos_embed": np.zeros((1, 15, HIDDEN))}, PIXELS, r"shape \(1, 15, 32\): .* in a square"),
        ({"final_layer.linear.weight": np.zeros((20, HIDDEN))}, PIXELS, "has 20 rows: .* 12 are"),
        ({"x_embedder.proj.weight": np.zeros((32, 3))}, PIXELS, r"shape \(32, 3\), unlike"),
        ({}, Request(preset="dit_xl2_256"), "is not the released model dit_xl2_256: it has"),
        ({}, Request(preset="guided_64"), "Unknown preset 'guided_64'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tensors, change, request_, message):
    with pytest.raises(UsageError, match=message):
        recognise(of(tensors | change), request_)


def test_tensors_missing_and_left_over_are_named(tensors, imported):
    for changed, message in (
        (without(tensors, "blocks.1.attn.qkv.bias"), r"lacks blocks\.1\.attn\.qkv\.bias \(k\)"),
        (
            {**tensors, "blocks.0.attn.q_norm.weight": np.ones(16)},
            r"beyond .* blocks\.0\.attn\.q_norm",
        ),
        (
            {**tensors, "blocks.0.attn.qkv.bias": np.ones(95)},
            r"lacks blocks\.0\.attn\.qkv\.bias \(k",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            imported(recognise(of(changed), PIXELS), PIXELS)


def test_other_transformers_are_not_of_this_family(tensors):
    assert recognise(of(without(tensors, "y_embedder.embedding_table.weight")), Request()) is None
    assert recognise(of(renamed_for_diffusers(tensors)), Request()) is None
