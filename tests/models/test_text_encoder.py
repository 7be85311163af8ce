"""CLIP's text encoder: its sizes, its equations in float64, the mask, the ends of texts, dtypes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ddpm_jax.errors import UsageError
from ddpm_jax.models import attention
from ddpm_jax.models.attention import attention_by_products
from ddpm_jax.models.text_encoder import STABLE_DIFFUSION_2, TextEncoder, check_text_encoder

SMALL = TextEncoder(
    vocab_size=40, width=16, layers=2, heads=2, hidden=24, context_length=8, projection=6
)
END = 39
IDS = np.array([[38, 3, 5, END, END, END, END, END], [38, 1, 2, 3, 4, 5, 6, END]], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def encode(encoder, params, ids=IDS):
    return encoder.apply({"params": params}, ids)


@pytest.fixture(scope="module")
def params():
    """Parameters none of which is zero."""
    new = jax.jit(SMALL.init)(jax.random.key(0), IDS)["params"]
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), new
    )


def in_float64(params, ids, activation):
    """The equations of the encoder for one text, in NumPy: hidden states, last normalised."""
    p = jax.tree.map(np.float64, params)

    def norm(x, of):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * of["scale"] + of["bias"]

    def linear(x, of):
        return x @ of["kernel"] + of["bias"]

    def attention(x, of):
        q, k, v = (linear(x, of[name]).reshape(len(ids), 2, 8) for name in "qkv")
        out = np.zeros((len(ids), 2, 8))
        for head in range(2):
            for i in range(len(ids)):  # a token sees those up to itself
                weights = np.exp(k[: i + 1, head] @ q[i, head] / math.sqrt(8))
                out[i, head] = weights @ v[: i + 1, head] / weights.sum()
        return linear(out.reshape(len(ids), 16), of["proj_out"])

    x = p["token_embedding"][ids] + p["position_embedding"][: len(ids)]
    states = [x]
    for i in range(2):
        of = p[f"block_{i}"]
        x = x + attention(norm(x, of["norm_1"]), of)
        x = x + linear(
            activation(linear(norm(x, of["norm_2"]), of["mlp_dense0"])), of["mlp_dense1"]
        )
        states.append(x)
    return states, [norm(x, p["norm_out"]) for x in states], p["text_projection"]["kernel"]


ACTIVATIONS = {
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
}


@pytest.mark.full
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_features_are_those_of_the_equations_in_float64(params, activation):
    features = encode(SMALL.clone(activation=activation), params)
    skipping = encode(SMALL.clone(activation=activation, skip=1), params)
    for row, (ids, end) in enumerate(zip(IDS, (3, 7), strict=True)):
        states, normalised, projection = in_float64(params, ids, ACTIVATIONS[activation])
        for ours, theirs in zip(features.hidden_states, states, strict=True):
            np.testing.assert_allclose(ours[row], theirs, atol=1e-5)
        np.testing.assert_allclose(features.context[row], normalised[-1], atol=1e-5)
        np.testing.assert_allclose(skipping.context[row], normalised[-2], atol=1e-5)
        np.testing.assert_allclose(features.pooled[row], normalised[-1][end], atol=1e-5)
        np.testing.assert_allclose(skipping.pooled[row], normalised[-1][end], atol=1e-5)
        np.testing.assert_allclose(
            features.projected[row], normalised[-1][end] @ projection, atol=1e-5
        )


def test_the_parameters_of_stable_diffusion_s_encoders_are_counted():
    def count(encoder):
        ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
        return sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(encoder.init, jax.random.key(0), ids))
        )

    assert count(TextEncoder()) == 123_060_480
    assert count(STABLE_DIFFUSION_2) == 340_387_840


def test_no_token_sees_a_later_one(params):
    def tokens(x):
        embedding = params | {"token_embedding": params["token_embedding"].at[IDS[1]].add(x)}
        return SMALL.apply({"params": embedding}, IDS[1:]).context[0].sum(-1)

    gradients = np.abs(jax.jit(jax.jacrev(tokens))(jnp.zeros((8, 16)))).sum(-1)
    assert (gradients > 0).tolist() == np.tri(8, dtype=bool).tolist()


def test_causal_attention_in_pieces_of_the_queries_is_that_of_all_at_once(monkeypatch):
    q, k, v = np.random.default_rng(1).normal(size=(3, 2, 7, 2, 8)).astype(np.float32)

    def attend():
        return attention_by_products(q, k, v, is_causal=True)

    whole = attend()
    monkeypatch.setattr(attention, "PIECE", 4 * 2 * 2 * 7 * 3)  # of three queries: 3, 3 and 1
    np.testing.assert_allclose(attend(), whole, atol=1e-6)
    np.testing.assert_allclose(whole[:, 0], v[:, 0], atol=1e-6)


def test_padding_is_seen(params):
    """As in Stable Diffusion: the features of the padding depend on which token pads."""
    zeros = np.where(np.arange(8) > 3, 0, IDS[:1])
    ended, zeroed = encode(SMALL, params, IDS[:1]), encode(SMALL, params, zeros)
    np.testing.assert_array_equal(ended.context[:, :4], zeroed.context[:, :4])
    np.testing.assert_array_equal(ended.pooled, zeroed.pooled)
    assert np.abs(ended.context[:, 4:] - zeroed.context[:, 4:]).min(axis=-1).min() > 0


def test_the_end_of_a_text_is_the_first_largest_id_or_the_one_told(params):
    ids = np.array([[38, 4, END, 4, END, 0, 4, 0]], np.int32)
    context = encode(SMALL, params, ids).context[0]
    assert not np.allclose(context[1], context[2], atol=0.1)
    ends = {None: 2, END: 2, 4: 1, 0: 5, 30: 0}

    @jax.jit
    def pooled_by_each(params):
        return [SMALL.clone(end_id=end).apply({"params": params}, ids).pooled[0] for end in ends]

    for pooled, position in zip(pooled_by_each(params), ends.values(), strict=True):
        np.testing.assert_allclose(pooled, context[position], atol=1e-6)


def test_shorter_texts_have_the_features_of_their_beginning(params):
    short = encode(SMALL, params, IDS[:, :5])
    assert short.context.shape == (2, 5, 16)
    np.testing.assert_allclose(short.context, encode(SMALL, params).context[:, :5], atol=1e-5)
    with pytest.raises(UsageError, match="The texts have 9 tokens, and this encoder reads 8"):
        encode(SMALL, params, np.zeros((1, 9), np.int32))


def test_a_text_with_an_id_outside_the_vocabulary_is_nan(params):
    for wrong in (-1, 40):
        ids = np.where(np.arange(16).reshape(2, 8) == 3, wrong, IDS)
        lost = np.isnan(encode(SMALL, params, ids).context)
        assert lost[0].all()
        assert not lost[1].any()


def test_bfloat16_is_near_float32_with_float32_parameters(params):
    half = SMALL.clone(dtype=jnp.bfloat16)
    features = encode(half, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(features)} == {jnp.dtype(jnp.bfloat16)}
    new = jax.eval_shape(half.init, jax.random.key(0), IDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
    exact = encode(SMALL, params).context
    # 8 bits of a mantissa, two layers
    difference = np.asarray(features.context, np.float32) - exact
    assert 0 < np.sqrt((difference**2).mean()) < 0.03 * exact.std()


@pytest.mark.full
def test_new_weights_have_the_scales_of_openai_s_code():
    encoder = SMALL.clone(vocab_size=2000, width=128, hidden=256, context_length=500, layers=1)
    new = flatten_dict(jax.jit(encoder.init)(jax.random.key(1), IDS)["params"], sep="/")
    last = 128**-0.5 / math.sqrt(2 * encoder.layers)
    expected = {
        "token_embedding": 0.02,
        "position_embedding": 0.01,
        "block_0/q/kernel": 128**-0.5,
        "block_0/v/kernel": 128**-0.5,
        "block_0/proj_out/kernel": last,
        "block_0/mlp_dense0/kernel": 256**-0.5,
        "block_0/mlp_dense1/kernel": last,
    }
    for name, scale in expected.items():
        # standard error of a standard deviation of n numbers: 1 / sqrt(2 n)
        assert new[name].std() == pytest.approx(scale, rel=4 / math.sqrt(2 * new[name].size)), name
    assert all((value == 0).all() for name, value in new.items() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"vocab_size": 1.5}, "vocab_size is 1.5"),
        ({"projection": -1}, "projection is -1"),
        ({"heads": 5}, "heads 5 does not divide width 16"),
        ({"activation": "relu"}, "Unknown activation 'relu'"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"dtype": "int32"}, "dtype is 'int32'"),
        ({"skip": 3}, "skip is 3, and the encoder has 2 layers"),
    ],
)
def test_fields_that_make_no_encoder_are_refused(fields, says):
    with pytest.raises(UsageError, match=says):
        check_text_encoder(SMALL.clone(**fields))
    check_text_encoder(SMALL)
