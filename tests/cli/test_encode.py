"""Pictures to latents and back by the commands, of every kind of first stage; and what they refuse
in one sentence."""

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.checkpoints.writer import Checkpointer
from ddpm_jax.cli import command, decode, encode
from ddpm_jax.data.transforms import to_model_range, to_uint8
from ddpm_jax.experiments import config as configs
from ddpm_jax.experiments.building import build
from ddpm_jax.experiments.loading import load_first_stage
from ddpm_jax.monitoring.results import weights_digest

KINDS = ("ae", "vae", "vq")
SIZE, FACTOR, CODES = 8, 2, 16


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Kind -> the directory of checkpoints 1 and 2 of random weights; "diffusion" is none."""
    made = {}
    for kind in KINDS:
        config = configs.default_config()
        config.objective, config.first_stage.kind = "first_stage", kind
        config.data.image_size, config.model.ch, config.model.ch_mult = SIZE, 32, (1, 1)
        config.model.num_res_blocks, config.model.attn_resolutions = 1, ()
        if kind == "vq":
            config.first_stage.num_codes = CODES
        params = random_like(build(config).params_shapes())
        steps = {
            step: jax.tree.map(lambda leaf, scale=1 + step / 10: scale * leaf, params)
            for step in (1, 2)
        }
        made[kind] = save(tmp_path_factory.mktemp(kind), config, steps)
    made["diffusion"] = save(
        tmp_path_factory.mktemp("diffusion"), configs.default_config(), {1: np.zeros(1)}
    )
    return made


def save(directory, config, params):
    """Writes checkpoints, step -> weights, and returns the directory."""
    checkpointer = Checkpointer(directory, keep_last=2, keep_every=1)
    for step, weights in params.items():
        checkpointer.save(step, {"ema_params": weights}, {}, configs.to_dict(config))
    checkpointer.close()
    return directory


def random_like(shapes):
    """Weights of about unit gain, so that neither latents nor pictures are all alike."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        return rng.normal(
            size=leaf.shape, scale=0.5 / max(1, np.prod(leaf.shape[:-1])) ** 0.5
        ).astype(np.float32)

    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five pictures of the model's size: their paths and pixels."""
    directory = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    paths = [directory / f"photo{i}.png" for i in range(5)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths, pixels


def encoded(stage, *arguments, out):
    """Runs the command; returns what is in its file."""
    argv = ["--ckpt", stage, *arguments, "--batch_size", "2", "--out", out]
    assert command.run(encode.main, [str(argument) for argument in argv]) == 0
    with np.load(out) as arrays:
        return {name: arrays[name] for name in arrays.files}


def decoded(stage, file, out):
    """Runs the command; returns the pictures by name, as the files in the new directory `out` have
    them."""
    argv = ["--ckpt", stage, file, "--batch_size", "2", "--out", out]
    assert command.run(decode.main, [str(argument) for argument in argv]) == 0
    return {path.stem: np.asarray(Image.open(path)) for path in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def files(stages, photos, tmp_path_factory):
    """Kind -> the file of the five pictures, and what is in it."""
    directory = tmp_path_factory.mktemp("files")
    places = {kind: directory / f"{kind}.npz" for kind in KINDS}
    return {
        kind: (place, encoded(stages[kind], *photos[0], out=place))
        for kind, place in places.items()
    }


def own_reconstructions(directory, pixels):
    """As training shows them: latents and pictures in one program, two images at a time as the
    commands compute."""
    loaded = load_first_stage(directory)
    stage = loaded.model.stage

    @jax.jit
    def both(images):
        latent = stage.latent(loaded.params, to_model_range(images))
        return latent.z, to_uint8(stage.image(stage.decoded(loaded.params, latent.z)))

    rows = np.concatenate([pixels, pixels[-1:]])
    found = [both(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    return [np.concatenate(part)[: len(pixels)] for part in zip(*found, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_what_was_encoded_is_the_models_own_reconstruction_bit_for_bit(
    stages, photos, files, tmp_path, kind
):
    file, arrays = files[kind]
    z, expected = own_reconstructions(stages[kind], photos[1])
    # two programs sum in different orders
    np.testing.assert_allclose(arrays["latents"], z, atol=1e-6)
    pictures = decoded(stages[kind], file, tmp_path / "decoded")
    assert list(pictures) == [path.stem for path in photos[0]]
    np.testing.assert_array_equal(np.stack(list(pictures.values())), expected)
    assert expected.std(axis=0).mean() > 1  # they differ, so a row out of place would be seen


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "more"), [("ae", set()), ("vae", {"log_variance"}), ("vq", {"codes"})]
)
def test_a_file_says_what_it_holds_and_whose_it_is(stages, photos, files, kind, more):
    _, arrays = files[kind]
    assert arrays.keys() == {"latents", "names", "kind", "first_stage", "made_by"} | more
    assert (arrays["latents"].dtype, arrays["latents"].shape) == (
        np.float32,
        (5, SIZE // FACTOR, SIZE // FACTOR, 4),
    )
    assert arrays["names"].tolist() == list(map(str, photos[0]))
    params = load_first_stage(stages[kind]).params
    assert (str(arrays["kind"]), str(arrays["first_stage"])) == (kind, weights_digest(params))
    assert str(arrays["made_by"]) == f"{stages[kind]}, step 2, ema weights"
    if kind == "vq":
        assert (arrays["codes"].dtype, arrays["codes"].shape) == (np.int32, (5, 4, 4))
        np.testing.assert_array_equal(arrays["latents"], params["codebook"][arrays["codes"]])
        assert len(np.unique(arrays["codes"])) > 2


@pytest.mark.full
def test_a_vq_vae_decodes_codes_alone_and_vectors_near_them_as_it_does_both(
    stages, files, tmp_path
):
    file, arrays = files["vq"]
    both = decoded(stages["vq"], file, tmp_path / "both")
    codebook = load_first_stage(stages["vq"]).params["codebook"]
    apart = np.linalg.norm(codebook[:, None] - codebook[None], axis=-1)
    # In each of 4 channels, so 0.4 of the smallest distance in all: less than half of it.
    nearby = arrays["latents"] + np.float32(0.2 * apart[apart > 0].min())
    for name, alone in {"codes": {"codes": arrays["codes"]}, "nearby": {"latents": nearby}}.items():
        np.savez(tmp_path / f"{name}.npz", **alone)
        found = decoded(stages["vq"], tmp_path / f"{name}.npz", tmp_path / name)
        assert list(found) == ["00000", "00001", "00002", "00003", "00004"]
        np.testing.assert_array_equal(list(found.values()), list(both.values()))


@pytest.mark.full
def test_a_draw_of_the_posterior_follows_from_the_seed_and_the_pictures_number(
    stages, photos, files, tmp_path
):
    many, mean = [*photos[0]] * 12, files["vae"][1]
    drawn = encoded(stages["vae"], *many, "--sample", "--seed", "1", out=tmp_path / "many.npz")
    np.testing.assert_allclose(drawn["mean"], np.tile(mean["latents"], (12, 1, 1, 1)), atol=1e-6)
    eps = (drawn["latents"] - drawn["mean"]) * np.exp(-0.5 * drawn["log_variance"])
    assert abs(eps.mean()) < 4 / eps.size**0.5  # 3,840 draws of N(0, 1): four standard errors
    assert abs(eps.var() - 1) < 4 * (2 / eps.size) ** 0.5
    assert len(np.unique(eps[:, 0, 0, 0])) == len(many)  # the same five pictures, drawn again
    few = encoded(
        stages["vae"], *photos[0][:3], "--sample", "--seed", "1", out=tmp_path / "few.npz"
    )
    np.testing.assert_allclose(few["latents"], drawn["latents"][:3], atol=1e-6)
    other = encoded(stages["vae"], *photos[0][:3], "--sample", out=tmp_path / "other.npz")
    assert np.abs(other["latents"] - few["latents"]).min() > 0


@pytest.mark.slow
def test_pictures_of_other_sizes_go_through_whole_or_at_a_size_that_is_asked_for(stages, tmp_path):
    photo = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (9, 15, 3), np.uint8)).save(photo)
    arrays = encoded(stages["ae"], photo, "--keep_size", out=tmp_path / "whole.npz")
    assert arrays["latents"].shape == (1, 4, 7, 4)
    assert decoded(stages["ae"], tmp_path / "whole.npz", tmp_path / "decoded")["wide"].shape == (
        8,
        14,
        3,
    )
    smaller = encoded(stages["ae"], photo, "--size", "4", out=tmp_path / "smaller.npz")
    assert smaller["latents"].shape == (1, 2, 2, 4)


@pytest.mark.full
def test_a_directory_is_all_pictures_in_it_and_a_sheet_is_one_file(
    stages, photos, tmp_path, invoke
):
    for folder in "ab":
        (tmp_path / "album" / folder).mkdir(parents=True)
        Image.fromarray(photos[1][0]).save(tmp_path / "album" / folder / "same.png")
    (tmp_path / "album" / "notes.txt").write_text("no picture")
    file = tmp_path / "latents.npz"
    arrays = encoded(stages["ae"], tmp_path / "album", photos[0][2], out=file)
    assert arrays["names"].tolist() == [str(tmp_path / "album" / f / "same.png") for f in "ab"] + [
        str(photos[0][2])
    ]
    assert list(decoded(stages["ae"], file, tmp_path / "out")) == [
        "00000_same",
        "00001_same",
        "00002_photo2",
    ]
    result = invoke("decode", "--ckpt", stages["ae"], file, "--out", tmp_path / "sheet.png")
    assert result.code == 0, result.err
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 66 + 2, 2 * 66 + 2)


@pytest.mark.full
def test_pictures_that_cannot_be_encoded_are_refused(refused, stages, photos, tmp_path):
    ae, photo = stages["ae"], photos[0][0]
    text, small, tall = tmp_path / "text.png", tmp_path / "small.png", tmp_path / "tall.png"
    text.write_text("no picture")
    Image.fromarray(np.zeros((6, 4, 3), np.uint8)).save(small)
    Image.fromarray(np.zeros((16, 8, 3), np.uint8)).save(tall)
    (tmp_path / "empty").mkdir()
    there = tmp_path / "there.npz"
    there.write_bytes(b"mine")
    refused("encode", "--ckpt", ae, says=["No picture is named"])
    refused("encode", photo, says=["--ckpt is missing"])
    refused(
        "encode",
        "--ckpt",
        stages["diffusion"],
        photo,
        "--out",
        tmp_path / "x.npz",
        says=["holds a diffusion model"],
    )
    refused("encode", "--ckpt", ae, photo, "--out", there, says=[f"{there} is there already"])
    refused("encode", "--ckpt", ae, photo, "--out", tmp_path / "x", says=["ends in .npz"])
    for arguments, says in (
        ([tmp_path / "none.png"], f"PICTURE: there is no file {tmp_path / 'none.png'}"),
        ([tmp_path / "empty"], "holds no images"),
        ([photo, text], f"{text} cannot be read: not an image"),
        ([photo, small], "small.png is 4x6, but images of 8x8 are wanted"),
        (
            [photo, "--size", "5"],
            "size is 5, but this network divides by 2: give a multiple of it, 4 say",
        ),
        ([photo, "--size", "8", "--keep_size"], "give one of them"),
        ([photo, tall, "--keep_size"], "tall.png is 8x16 and"),
        ([photo, "--sample"], "a first stage of the kind 'ae' does not have"),
        ([photo, "--seed", "1"], "seed is of the draws of sample"),
    ):
        refused("encode", "--ckpt", ae, *arguments, "--out", tmp_path / "x.npz", says=[says])
    assert there.read_bytes() == b"mine"
    assert not (tmp_path / "x.npz").exists()


def test_files_that_cannot_be_decoded_are_refused(refused, stages, photos, files, tmp_path):
    file, arrays = files["vq"]
    refused("decode", "--ckpt", stages["vq"], says=["0 files of latents are named"])
    refused(
        "decode",
        "--ckpt",
        stages["vq"],
        tmp_path / "none.npz",
        says=[f"There is no file {tmp_path / 'none.npz'}"],
    )
    refused(
        "decode",
        "--ckpt",
        stages["vq"],
        "--ckpt_step",
        "1",
        file,
        says=["of another first stage", "step 2", "step 1"],
    )
    np.savez(tmp_path / "mine.npz", pixels=arrays["latents"])
    refused(
        "decode",
        "--ckpt",
        stages["vq"],
        tmp_path / "mine.npz",
        says=["has no 'latents' or 'codes', but 'pixels'"],
    )
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "photo3.png").write_text("mine")
    refused(
        "decode",
        "--ckpt",
        stages["vq"],
        file,
        "--out",
        taken,
        says=[f"{taken / 'photo3.png'} is there already"],
    )
    assert [path.name for path in taken.iterdir()] == ["photo3.png"]


@pytest.mark.full
def test_a_network_that_diverged_is_no_picture(refused, stages, tmp_path, photos):
    """Weights of 1e38 overflow."""
    loaded = load_first_stage(stages["ae"])
    params = jax.tree.map(lambda leaf: np.full_like(leaf, 1e38), loaded.params)
    save(tmp_path / "run", loaded.model.config, {1: params})
    out = tmp_path / "x.npz"
    refused(
        "encode",
        "--ckpt",
        tmp_path / "run",
        photos[0][0],
        "--out",
        out,
        says=["0 is not finite"],
        code=1,
    )
    assert not out.exists()
