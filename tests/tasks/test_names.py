"""Names of folders of images, from the record of how they were made."""

import re

import pytest

from ddpm_jax.tasks import names

PLAIN = {"sampler": "ancestral", "steps": 1000}
GUIDED = {"guidance": {"kind": "classifier-free", "scale": 3.0, "interval": [0.2, 0.8]}}


@pytest.mark.parametrize(
    ("record", "what", "how"),
    [
        (PLAIN, "", "steps1000"),
        ({"sampler": "ddim", "steps": 50}, "", "steps50_ddim"),
        (PLAIN | GUIDED, "cfg3", "steps1000_[0-9a-f]{8}"),
        (
            {
                "sampler": "ddim",
                "steps": 50,
                "init_image": "/photos/my cat.v2.PNG",
                "strength": 0.6,
            },
            "img2img_my-cat-v2_s0.6",
            "steps50_ddim_[0-9a-f]{8}",
        ),
        (
            {
                "sampler": "repaint",
                "steps": 250,
                "resamplings": 5,
                "inpaint": "a.png",
                "mask": "b.png",
            }
            | GUIDED,
            "inpaint_a_b_cfg3",
            "steps250_repaint_resamplings5_[0-9a-f]{8}",
        ),
        (PLAIN | {"low_res": "small.png"}, "enlarge_small", "steps1000_[0-9a-f]{8}"),
        (
            PLAIN
            | {
                "spacing": [19, 7.5, 0],
                "sampler_options": {"eta": 0.5, "variant": "bh1"},
                "labels": [3, 5],
            },
            "",
            "steps1000_times_eta0.5_variant-bh1_labels3-5_[0-9a-f]{8}",
        ),
        (PLAIN | {"labels": list(range(10))}, "", "steps1000_[0-9a-f]{8}"),
    ],
)
def test_a_name_says_what_images_are_made_from_and_how(record, what, how):
    assert names.what(record) == what
    assert re.fullmatch(how, names.how(record))


def test_records_that_look_alike_in_words_have_names_of_their_own():
    records = [PLAIN | {"init_image": f"{folder}/a.png", "strength": 0.5} for folder in "bc"]
    assert names.what(records[0]) == names.what(records[1])
    assert names.how(records[0]) != names.how(records[1])


@pytest.mark.parametrize(
    "path", ["x" * 250 + ".png", "写真.png", "a/../..", "a b;rm -rf $HOME.png", "-.png", "\n.png"]
)
def test_a_name_is_short_and_safe_whatever_the_file_is_called(path):
    record = (
        PLAIN
        | GUIDED
        | {"inpaint": path, "mask": path, "init_image": path, "strength": 0.5, "low_res": path}
    )
    for name in (names.stem(path), names.what(record), names.how(record)):
        assert re.fullmatch(r"[A-Za-z0-9_.+-]+", name)
        assert len(name) <= 90
        assert not name.startswith(("-", "."))
