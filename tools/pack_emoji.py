"""Make `ddpm_jax/data/emoji.npz`, the bundled captioned pictures, from a folder of Noto emoji.

    python tools/pack_emoji.py SOURCE ddpm_jax/data/emoji.npz

SOURCE holds `metadata.jsonl`, one JSON object per picture with `file_name`, `text`, `short_name`,
`category` and `subcategory`, and the pictures that it names, 64x64 with transparency: those of the
npm package `emoji-datasource-google` 16.0.0, one file each, with the names of its `emoji.json`.
The same SOURCE gives the same file, byte for byte. Its arrays:

- images: uint8 [N, 32, 32, 3]; the pictures over white, halved by a box filter.
- texts: [N, 2]; the Unicode name, and the short name in words, "" where that is the same.
- labels: uint8 [N]; the number of the category in `categories`, which are sorted by name.
- held_out: bool [N]; the test split, see `held_out`.
"""

import argparse
import io
import json
import pathlib
import re
import zipfile
import zlib

import numpy as np

from ddpm_jax.data import images

SIZE = 32
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_TONED = re.compile(r"(?P<name>.*?), (?P<tones>[a-z-]+ skin tone(?: and [a-z-]+ skin tone)?)")
_WORDS = re.compile(r"[a-z][a-z_-]{2,}")
# in words what some short names are not, or what the picture shows and the Unicode name denies
IN_WORDS = {"+1": "thumbs up", "-1": "thumbs down", "heart": "red heart", "v": "peace sign"}


def texts(row: dict[str, str]) -> tuple[str, str]:
    """Return the Unicode name and the short name in words, each with its skin tone."""
    toned = _TONED.fullmatch(row["text"])
    short = row["short_name"]
    if short not in IN_WORDS and (row["category"] == "Flags" or not _WORDS.fullmatch(short)):
        return row["text"], ""
    words = IN_WORDS.get(short, re.sub("[_-]", " ", short))
    words += f", {toned['tones']}" if toned else ""
    return row["text"], "" if words == row["text"] else words


def held_out(row: dict[str, str]) -> bool:
    """Return whether a picture is in the test split, as its name and tone decide.

    Of gestures and parts of the body "dark skin tone" is held out; of a quarter of the other
    pictures with one skin tone, chosen by the CRC-32 of their name, one tone each; of the pictures
    without people one in twenty. Names that differ by a mirror image count as one.
    """
    toned = _TONED.fullmatch(row["text"])
    if toned is None:
        return row["category"] != "People & Body" and _number(row["text"]) % 20 == 0
    tone = toned["tones"].removesuffix(" skin tone")
    if tone not in TONES:  # of two people
        return False
    if row["subcategory"].startswith(("hand", "body")):
        return tone == "dark"
    number = _number(toned["name"].removesuffix(" facing right"))
    return number % 4 == 0 and tone == TONES[number // 4 % 5]


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def pack(source: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of the file."""
    rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
    categories = sorted({row["category"] for row in rows})
    return {
        "images": np.stack([_pixels(source / row["file_name"]) for row in rows]),
        "texts": np.array([texts(row) for row in rows]),
        "labels": np.array([categories.index(row["category"]) for row in rows], np.uint8),
        "categories": np.array(categories),
        "held_out": np.array([held_out(row) for row in rows]),
    }


def _pixels(path: pathlib.Path) -> np.ndarray:
    return images.to_array(images.decode(path), image_size=SIZE, channels=3)


def write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an NPZ compressed by LZMA, a third smaller here than by Deflate, without times."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(_entry(f"{name}.npy"), buffer.getvalue())


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_LZMA
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    given = parser.parse_args()
    write(given.out, pack(given.source))


if __name__ == "__main__":
    main()
