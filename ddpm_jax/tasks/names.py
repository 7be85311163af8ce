"""Names of folders and files from records of how images are made.

They are readable, safe and short, and different for different records.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

_IN_A_STEM = 24  # characters of a file's name that are kept
_IN_A_NAME = 80  # characters before the digest
_SHOWN_LABELS = 3  # more are left to the digest
# kind of guidance -> its name
_GUIDANCE = {"classifier-free": "cfg", "classifier": "classifier", "weaker": "away"}


def what(record: Mapping[str, Any]) -> str:
    """Return the picture and the guidance in a record: "img2img_photo_s0.6_cfg3", or ""."""
    parts = []
    if "init_image" in record:
        parts += ["img2img", stem(record["init_image"]), f"s{record['strength']:g}"]
    if "inpaint" in record:
        parts += ["inpaint", stem(record["inpaint"]), stem(record["mask"])]
    if "low_res" in record:
        parts += ["enlarge", stem(record["low_res"])]
    if "prompt" in record:
        parts.append(_plain(record["prompt"][0]) or "any")
    if "guidance" in record:
        guidance = record["guidance"]
        parts.append(f"{_GUIDANCE[guidance['kind']]}{guidance['scale']:g}")
    return _short(parts)


def how(record: Mapping[str, Any]) -> str:
    """Return steps, sampler and labels, and a digest of all settings that are not defaults.

    The digest distinguishes records that look alike in words, such as two photos of one name. It is
    left out if only steps and sampler are set.
    """
    own = {name: value for name, value in record.items() if name not in ("sampler", "steps")}
    parts = [f"steps{record['steps']}"]
    if record["sampler"] != "ancestral":
        parts.append(record["sampler"])
    if "levels" in record:
        parts.append(record["levels"])
    if "spacing" in record:
        spacing = record["spacing"]
        parts.append(spacing.partition(":")[0] if isinstance(spacing, str) else "times")
    parts += [
        f"{name}{value:g}" if isinstance(value, int | float) else f"{name}-{value}"
        for name, value in _options(own)
    ]
    if 0 < len(record.get("labels", ())) <= _SHOWN_LABELS:
        parts.append(f"labels{'-'.join(map(str, record['labels']))}")
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
    return "_".join([_short(parts), *([digest] if own else [])])


def stem(path: str | os.PathLike) -> str:
    """Return the name of a file without its ending, in characters that every shell takes.

    These are ASCII letters, digits, _ and -.
    """
    return _plain(os.path.splitext(os.path.basename(os.fspath(path)))[0]) or "picture"


def joined(*parts: str) -> str:
    """Join the parts that are not empty by _."""
    return "_".join(filter(None, parts))


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text)[:_IN_A_STEM].strip("-")


def _options(own: Mapping[str, Any]) -> list[tuple[str, Any]]:
    options = [(name, own[name]) for name in ("resamplings", "jump", "clip") if name in own]
    return [*own.get("sampler_options", {}).items(), *options]


def _short(parts: list[str]) -> str:
    return re.sub(r"[^\w.+-]+", "-", "_".join(parts), flags=re.ASCII)[:_IN_A_NAME].rstrip("_")
