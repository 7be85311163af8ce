"""First stages: sizes, shapes, receptive fields, precision, dropout, gradients, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax.errors import UsageError
from ddpm_jax.models.autoencoder import Autoencoder, check_autoencoder
from ddpm_jax.models.layers import Dropout
from ddpm_jax.models.trunk import ResBlock

SMALL = Autoencoder(resolution=16, ch=32, ch_mult=(1, 2), num_res_blocks=1, dropout=0.3)
X = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
KEYS = jax.random.split(jax.random.key(3), 2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(model, method, params, x, keys=None):
    return model.apply({"params": params}, x, keys, method=method)


def param_shapes(model, shape=X.shape):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))[
        "params"
    ]


@pytest.fixture(scope="module")
def params():
    """Return parameters none of which is zero, at the published scale so that nothing saturates."""
    rng = np.random.default_rng(7)

    def draw(path, shape):
        deviation = np.prod(shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.1
        return np.float32(deviation * rng.normal(size=shape) + (path[-1] == "scale"))

    return unflatten_dict(
        {path: draw(path, leaf.shape) for path, leaf in flatten_dict(param_shapes(SMALL)).items()}
    )


def relative_difference(actual, expected):
    return jnp.sqrt(jnp.mean(jnp.square(actual - expected)) / jnp.mean(jnp.square(expected)))


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 83_653_863),  # Stable Diffusion's AutoencoderKL
        # VQ-f4
        (
            {"ch_mult": (1, 2, 4), "latent_channels": 3, "moments": False, "num_codes": 8192},
            55_322_782,
        ),
    ],
)
def test_published_sizes_have_as_many_parameters_as_those_of_diffusers(fields, count):
    """Counted in `diffusers.AutoencoderKL` and `diffusers.VQModel` of these fields."""
    shapes = param_shapes(Autoencoder(**fields), (1, 256, 256, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_the_factor_is_the_size_of_an_image_over_that_of_its_latents():
    for levels in (1, 2, 4):
        model = SMALL.clone(
            ch_mult=(1,) * levels, latent_channels=5, image_channels=1, out_channels=2
        )
        assert model.factor == 2 ** (levels - 1)
        shapes = param_shapes(model, (3, 16, 24, 1))

        def output_shape(method, x, model=model, shapes=shapes):
            out = jax.eval_shape(
                functools.partial(model.apply, method=method), {"params": shapes}, x
            )
            assert out.dtype == jnp.float32
            return out.shape

        h, w = 16 // model.factor, 24 // model.factor
        assert output_shape("encode", jnp.zeros((3, 16, 24, 1))) == (3, h, w, 10)
        assert output_shape("decode", jnp.zeros((3, h, w, 5))) == (3, 16, 24, 2)


def test_the_encoder_of_latents_gives_half_the_channels_of_that_of_moments():
    latents, moments = param_shapes(SMALL.clone(moments=False)), param_shapes(SMALL)
    assert latents["quant"]["kernel"].shape == (4, 4)
    assert moments["quant"]["kernel"].shape == (8, 8)
    assert jax.tree.map(jnp.shape, latents["decoder"]) == jax.tree.map(
        jnp.shape, moments["decoder"]
    )


@pytest.mark.full
def test_no_layer_takes_a_time():
    assert not [
        path for path in flatten_dict(param_shapes(SMALL)) if any("temb" in name for name in path)
    ]
    h, temb = X[:, :4, :4].repeat(11, -1)[..., :32], jnp.zeros((2, 64))
    block = ResBlock(32)
    without = block.init(jax.random.key(0), h, None, None)["params"]
    with_time = block.init(jax.random.key(0), h, temb, None)["params"]
    assert set(with_time) - set(without) == {"temb_proj"}
    # A time of which nothing is added leaves the block without one.
    with_time["conv2"]["kernel"] = with_time["conv1"]["kernel"]  # a new block's is practically zero
    np.testing.assert_array_equal(
        block.apply({"params": with_time}, h, temb, None),
        block.apply({"params": {name: with_time[name] for name in without}}, h, None, None),
    )


def test_codes_start_uniform_within_one_over_their_number_and_the_shared_scale_where_given():
    model = SMALL.clone(moments=False, num_codes=512, shared_log_scale=-1.5)
    params = model.init(jax.random.key(0), method=lambda model: (model.codebook, model.log_scale))[
        "params"
    ]
    assert params["codebook"].shape == (512, 4)
    assert 0.99 / 512 < jnp.abs(params["codebook"]).max() <= 1 / 512
    # The variance of n uniform draws has relative standard deviation sqrt(0.8 / n), their mean
    # sqrt(var / n); five of each.
    np.testing.assert_allclose(
        params["codebook"].var(), 512.0**-2 / 3, rtol=5 * np.sqrt(0.8 / 2048)
    )
    assert abs(params["codebook"].mean()) < 5 * np.sqrt(512.0**-2 / 3 / 2048)
    assert params["log_scale"] == -1.5
    assert {leaf.dtype for leaf in jax.tree.leaves(param_shapes(model))} == {jnp.dtype("float32")}
    assert not {"codebook", "log_scale"} & set(param_shapes(SMALL))


@pytest.mark.full
def test_latents_of_a_new_network_tell_its_pixels_apart():
    """Identical vectors would all be assigned the same code."""
    model = SMALL.clone(ch_mult=(1,), moments=False)
    new = jax.jit(model.init)(jax.random.key(0), X)["params"]
    z = apply(model, "encode", new, X)
    assert (z.std(axis=(0, 1, 2)) > 0.1).all()
    assert apply(model, "decode", new, z).std() > 0.1


@pytest.mark.slow
def test_every_parameter_has_a_gradient_but_the_codes_and_the_scale(params):
    model = SMALL.clone(moments=False, num_codes=8, shared_log_scale=0.0)
    new = flatten_dict(param_shapes(model))
    flat = flatten_dict(params)
    half = {
        ("encoder", "conv_out", "kernel"),
        ("encoder", "conv_out", "bias"),
        ("quant", "kernel"),
        ("quant", "bias"),
    }
    cut = {
        path: flat[path][tuple(slice(size) for size in leaf.shape)]
        for path, leaf in new.items()
        if path in half
    }
    extra = {("codebook",): jnp.ones((8, 4)), ("log_scale",): jnp.zeros(())}
    weights = unflatten_dict(flat | cut | extra)
    grads = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(model.apply({"params": p}, X) - X))))(
        weights
    )
    for path, grad in flatten_dict(grads).items():
        assert jnp.isfinite(grad).all(), path
        if path in extra:
            assert (grad == 0).all(), path
        # adds the same to every logit of a row, which a softmax does not see
        elif path[-2:] != ("k", "bias"):
            assert jnp.abs(grad).max() > 0, path


@pytest.mark.slow
def test_an_example_does_not_see_its_neighbours_in_the_batch(params):
    z = apply(SMALL, "encode", params, X)[..., :4]
    for method, x in (("encode", X), ("decode", z)):
        both = apply(SMALL, method, params, x, KEYS)
        alone = apply(SMALL, method, params, x[1:], KEYS[1:])
        # float32 sums in another order
        np.testing.assert_allclose(alone[0], both[1], rtol=0, atol=1e-5)
        assert (
            jnp.abs(apply(SMALL, method, params, x[::-1]) - apply(SMALL, method, params, x)).max()
            > 0.1
        )


@pytest.mark.slow
def test_dropout_is_drawn_by_the_key_of_the_example(params):
    z = apply(SMALL, "encode", params, X)[..., :4]
    same = jnp.stack([KEYS[0], KEYS[0]])
    for method, x in (("encode", X), ("decode", z)):
        twins = jnp.stack([x[0], x[0]])
        plain, one_key, two_keys = (
            apply(SMALL, method, params, twins, keys) for keys in (None, same, KEYS)
        )
        np.testing.assert_array_equal(one_key[0], one_key[1])
        assert jnp.abs(two_keys[0] - two_keys[1]).max() > 1e-2
        assert jnp.abs(one_key - plain).max() > 1e-2
        still = SMALL.clone(dropout=0.0)
        np.testing.assert_array_equal(apply(still, method, params, twins, same), plain)


@pytest.mark.full
def test_every_block_of_encoder_and_decoder_has_a_mask_of_its_own(params):
    masks = []
    for method, x, blocks in (
        ("encode", X, 4),
        ("decode", X[:, ::2, ::2].repeat(2, -1)[..., :4], 6),
    ):
        capture = functools.partial(
            SMALL.apply,
            capture_intermediates=lambda module, _: isinstance(module, Dropout),
            mutable="intermediates",
        )
        _, kept = jax.jit(functools.partial(capture, method=method))({"params": params}, x, KEYS)
        dropped = [np.asarray(h) == 0 for h in jax.tree.leaves(kept)]
        assert len(dropped) == blocks
        masks += dropped
    for i, mask in enumerate(masks):
        # The share of zeros among n independent draws has deviation sqrt(0.3 * 0.7 / n); five of
        # them.
        assert abs(mask.mean() - 0.3) < 5 * np.sqrt(0.21 / mask.size)
        assert not any(mask.shape == other.shape and (mask == other).all() for other in masks[:i])


@pytest.mark.full
def test_bfloat16_is_near_float32_with_float32_parameters_and_outputs(params):
    model = SMALL.clone(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(param_shapes(model))} == {jnp.dtype("float32")}
    z = apply(SMALL, "encode", params, X)
    for method, x, expected in (
        ("encode", X, z),
        ("decode", z[..., :4], apply(SMALL, "decode", params, z[..., :4])),
    ):
        y = apply(model, method, params, x)
        assert y.dtype == jnp.float32
        # bfloat16 keeps 8 bits: 0.4 % an operation, some 15 operations deep, errors of random sign.
        assert 1e-4 < relative_difference(y, expected) < 0.05


@pytest.mark.full
def test_every_block_is_recomputed_where_asked_and_none_by_default(params):
    def recomputed(remat, method, x):
        apply = functools.partial(SMALL.clone(remat=remat).apply, method=method)
        jaxpr = jax.make_jaxpr(apply)({"params": params}, x, KEYS)
        return sum(eqn.primitive.name == "remat2" for eqn in jaxpr.eqns)

    z = jnp.zeros((2, 8, 8, 4))
    # blocks of the levels; block, attention, block in the middle
    assert recomputed("blocks", "encode", X) == 2 * 1 + 3
    assert recomputed("products", "decode", z) == 2 * 2 + 3
    assert recomputed("none", "encode", X) == recomputed("none", "decode", z) == 0


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (256, 192)),
        (
            {
                "resolution": 8,
                "ch": 32,
                "ch_mult": (1, 2),
                "attn_resolutions": (4,),
                "num_heads": 4,
            },
            (8, 8),
        ),
        ({"moments": False, "num_codes": 512, "shared_log_scale": 0.0}, (64, 64)),
        ({"image_channels": 1, "out_channels": 2, "dtype": "bfloat16", "moments": False}, (32, 32)),
    ],
)
def test_what_can_be_built_is_accepted(fields, size):
    check_autoencoder(Autoencoder(**fields), *size)


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({}, (260, 256), "height 260 is not divisible by 8"),
        ({}, (256, 28), "width 28 is not divisible by 8"),
        ({"ch": 48}, (256, 256), "48 channels .* 32 groups"),
        ({"attn_resolutions": (16,)}, (256, 256), "attn_resolutions names 16, .* 256, 128, 64, 32"),
        ({"num_heads": 3}, (256, 256), "num_heads 3 does not divide the 512 channels"),
        ({"remat": "block"}, (256, 256), "Unknown remat 'block'.* Did you mean 'blocks'"),
        ({"downsample_padding": "start"}, (256, 256), "Unknown downsample padding 'start'"),
        ({"image_channels": 0}, (256, 256), "image_channels is 0"),
        ({"latent_channels": 0}, (256, 256), "latent_channels is 0"),
        ({"num_codes": -1}, (256, 256), "num_codes is -1"),
        ({"num_codes": 1, "moments": False}, (256, 256), "1 code says nothing"),
        ({"num_codes": 512}, (256, 256), "512 codes replaces vectors, .* set moments to False"),
        ({"out_channels": 4}, (256, 256), "out_channels is 4: give the 3 of the image, or 6"),
        (
            {"out_channels": 6, "shared_log_scale": 0.0},
            (256, 256),
            "shared_log_scale .* decoder of 6 channels",
        ),
        ({"shared_log_scale": float("nan")}, (256, 256), "shared_log_scale is nan"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_value_named(fields, size, words):
    with pytest.raises(UsageError, match=words):
        check_autoencoder(Autoencoder(**fields), *size)
