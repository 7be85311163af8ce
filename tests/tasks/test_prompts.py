"""Prompts of a tiny model that reads texts: what it is given, what is refused, sizes, and training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.data.captions import make_captions
from ddpm_jax.data.in_memory import ArraySource
from ddpm_jax.errors import UsageError
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.caption_rows import caption_rows, check_captions, with_context
from ddpm_jax.experiments.config import default_config
from ddpm_jax.experiments.denoising import Weights
from ddpm_jax.experiments.sizes import at_size
from ddpm_jax.experiments.texts import make_tokenizer
from ddpm_jax.experiments.trained_model import TrainedModel
from ddpm_jax.models.condition import Condition
from ddpm_jax.tasks.sampling import make_generator, with_defaults
from ddpm_jax.tasks.sampling_settings import Guidance, Sampling

WORDS = ("a red heart", "thumbs up", "a dog wearing hat")


def config(**fields):
    config = default_config()
    config.data.image_size, config.data.channels, config.data.captions = 8, 1, "auto"
    config.diffusion.num_timesteps = config.train.sample_steps = 20
    config.model.update(
        name="text_unet", ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,)
    )
    config.text.update(
        vocab_size=600, length=12, width=32, layers=1, heads=2, hidden=64, guidance=3.0
    )
    for name, value in fields.items():
        group, _, leaf = name.partition("__")
        config[group][leaf] = value
    return config


def without_texts(**fields):
    """A config of a network that reads none."""
    config = default_config()
    config.data.image_size, config.data.channels = 8, 1
    config.diffusion.num_timesteps = config.train.sample_steps = 20
    config.model.update(fields)
    return config


@pytest.fixture(scope="module")
def learned():
    """A model that was to learn its encoder, with random weights that do nothing alike."""
    model = build(config())
    draw = np.random.default_rng(0).normal
    shapes = model.params_shapes()
    params = jax.tree.map(lambda leaf: jnp.asarray(draw(0, 0.2, leaf.shape), leaf.dtype), shapes)
    return TrainedModel(model, Weights(params), 0, "ema", tokenizer=make_tokenizer(model.config))


def source(captions):
    images = np.zeros((len(captions), 8, 8, 1), np.uint8)
    made = make_captions(captions)
    return ArraySource(images, np.zeros(len(captions), np.int32), 0, "made up", captions=made)


@pytest.mark.full
def test_image_i_is_given_prompt_i_and_what_it_is_led_away_from(learned):
    sampling = Sampling(prompt=WORDS[:2], negative_prompt=("blurry",), steps=2)
    generator = make_generator(learned, sampling)
    inputs = generator.inputs([0, 1, 2, 7])
    encoder, params = learned.model.encoder, learned.params["encoder"]

    def features(*texts):
        return encoder.apply({"params": params}, learned.tokenizer(texts)).context

    wanted = features(WORDS[0], WORDS[1], WORDS[0], WORDS[1])
    np.testing.assert_allclose(inputs["condition"].context, wanted, atol=1e-5)
    np.testing.assert_allclose(inputs["avoided"], features(*["blurry"] * 4), atol=1e-5)
    assert generator.record["prompt"] == list(WORDS[:2])
    assert generator.record["negative_prompt"] == ["blurry"]


def test_without_a_scale_guidance_is_that_of_the_config_and_1_is_none(learned):
    sampling = Sampling(prompt=WORDS[:1], steps=2)
    guided = make_generator(learned, sampling)
    assert guided.record["guidance"] == {"kind": "classifier-free", "scale": 3.0}
    once = dataclasses.replace(sampling, guidance=Guidance(scale=1))
    assert make_generator(learned, once).guide.kind == "none"


def test_the_sampler_of_a_model_that_reads_texts_is_lms(learned):
    given = with_defaults(learned.model, Sampling(prompt=WORDS[:1]))
    assert (given.sampler, given.spacing) == ("lms", "linspace")
    own = Sampling(prompt=WORDS[:1], sampler="ddim")
    assert with_defaults(learned.model, own) == own


def test_a_prompt_is_refused_where_no_text_is_read_and_missed_where_it_is(learned):
    with pytest.raises(UsageError, match="prompt is missing"):
        make_generator(learned, Sampling(steps=2))
    plain = build(without_texts(ch_mult=(1,), attn_resolutions=()))
    trained = TrainedModel(plain, Weights(()), 0, "ema")
    for name in ("prompt", "negative_prompt"):
        with pytest.raises(UsageError, match=f"{name}: this model was trained without texts"):
            make_generator(trained, Sampling(steps=2, **{name: ("a dog",)}))


def test_words_that_are_cut_are_named(learned, capsys):
    make_generator(learned, Sampling(prompt=("one two three four five six seven eight nine",)))
    assert "these words were lost" in capsys.readouterr().err


def test_tiles_are_refused_where_nothing_is_decoded(learned):
    with pytest.raises(UsageError, match="tile is for a model over latents"):
        make_generator(learned, Sampling(prompt=WORDS[:1], tile=8))


def test_other_sizes_are_those_that_the_network_can_halve(learned):
    model = at_size(learned.model, 12, 16)
    assert model.shape == model.image_shape == (12, 16, 1)
    with pytest.raises(UsageError, match="height is 9"):
        at_size(learned.model, 9, 8)
    dit = build(without_texts(name="dit"))
    with pytest.raises(UsageError, match="for a U-Net"):
        at_size(dit, 16, 16)


@pytest.mark.slow
def test_tokens_are_encoded_inside_a_network_that_learns_its_encoder(learned):
    model, tokens = learned.model, jnp.asarray(learned.tokenizer(WORDS))
    x, t = jax.random.normal(jax.random.key(1), (3, 8, 8, 1)), jnp.array([3, 5, 19])
    apply = jax.jit(model.apply)
    of_tokens = apply(learned.weights, x, t, Condition(context=tokens))
    read = model.read(learned.weights, Condition(context=tokens))
    assert read.context.shape == (3, 12, 32)
    np.testing.assert_allclose(of_tokens, apply(learned.weights, x, t, read), atol=1e-6)

    def loss(params):
        output = model.apply(Weights(params), x, t, Condition(context=tokens))
        return jnp.sum(jnp.square(output - x))

    # The last convolution starts at almost nothing, and so does every gradient behind it.
    grown = jax.tree.map(lambda p: p + 0.1, learned.params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(grown)["encoder"]))


def test_a_batch_holds_the_tokens_of_the_captions_that_its_numbers_name(learned):
    captions = check_captions(learned.model, source([(WORDS[0],), (WORDS[1], WORDS[2])]))
    rows = caption_rows(learned.model, (), learned.tokenizer, captions)
    batch = with_context(rows)({"caption": np.array([0, 3]), "label": np.zeros(2)})
    assert sorted(batch) == ["context", "label"]
    np.testing.assert_array_equal(batch["context"], learned.tokenizer(("", WORDS[2])))


def test_a_trained_encoder_encodes_every_caption_once_and_keeps_them(learned, tmp_path):
    model = build(config(text__kind="clip", text__cache=str(tmp_path)))
    weights = Weights((), (), learned.params["encoder"])
    captions = source([(word,) for word in WORDS]).captions
    rows = caption_rows(model, weights.text, learned.tokenizer, captions)
    tokens = learned.tokenizer(("", *WORDS))
    wanted = model.encoder.apply({"params": weights.text}, tokens).context
    np.testing.assert_allclose(rows, wanted, atol=1e-5)
    (kept,) = tmp_path.iterdir()
    before = kept.stat().st_mtime_ns
    again = caption_rows(model, weights.text, learned.tokenizer, captions)
    np.testing.assert_array_equal(again, rows)
    assert kept.stat().st_mtime_ns == before
    other = weights._replace(text=jax.tree.map(lambda p: 2 * p, weights.text))
    caption_rows(model, other.text, learned.tokenizer, captions)
    assert len(list(tmp_path.iterdir())) == 2, "another encoder has features of its own"


def test_a_model_that_reads_texts_needs_captions_and_the_reverse(learned):
    with pytest.raises(UsageError, match=r"set data\.captions to 'auto'"):
        check_captions(learned.model, ArraySource(np.zeros((1, 8, 8, 1)), np.zeros(1), 0, ""))
    captioned = without_texts()
    captioned.data.captions = "auto"
    with pytest.raises(UsageError, match="this network reads no texts"):
        build(captioned)


@pytest.mark.slow
def test_it_trains_and_resumes_to_the_same_bits_and_draws_what_is_asked(tmp_path):
    fields = config(data__name="digits", data__flip=False)
    fields.data.data_dir = ""
    fields.train.update(
        num_steps=4, batch_size=4, log_every=1, num_samples=2, sample_steps=2, sample_every=0
    )
    fields.checkpoint.save_every = 2
    whole = ddpm_jax.train(fields, workdir=tmp_path / "whole")
    fields.train.num_steps = 2
    ddpm_jax.train(fields, workdir=tmp_path / "parts")
    fields.train.num_steps = 4
    parts = ddpm_jax.train(fields, workdir=tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, parts.state.params)
    model = ddpm_jax.load(tmp_path / "whole")
    images = model.sample(prompt=["a handwritten seven", "three"], steps=2, height=16, width=8)
    assert images.shape == (2, 16, 8, 1)
