"""The cases of the fuzzer: case n is a function of n, a command line and what is damaged of the
files that it reads.

A third are flags, a third fields of a config, and a third files. Values are small or absurd, never
merely large: what a machine can compute in an hour is no mistake.
"""

import functools
import importlib
import json
import os
import pathlib
import random
import shutil
from typing import NamedTuple

from ddpm_jax.cli import arguments
from ddpm_jax.experiments import config as configs

from . import world as worlds
from .words import FIELDS, FLAGS, JSON, NUMBERS, TEXTS, VALUES

# What needs other machines, or writes where it is told to whoever asks.
NOT_FUZZED = {
    "distributed",
    "coordinator",
    "num_processes",
    "process_id",
    "connect_timeout",
    "wandb",
    "platform",
    "help",
}
# below the case's own directory, or where nothing can be written
WRITTEN = {"out", "workdir", "compilation_cache"}
COSTLY = {"train.num_steps"}  # whose large values are an honest wish


class Case(NamedTuple):
    command: str
    argv: list[str]
    said: str
    same_result: bool


def make(number: int, world: pathlib.Path, here: pathlib.Path) -> Case:
    """Copies the world to `here`, an empty directory, and damages what case `number` damages."""
    rng = random.Random(number)
    shutil.copytree(world, here, dirs_exist_ok=True, ignore=shutil.ignore_patterns("expected-*"))
    worlds.write_configs(here)
    return (_flags, _fields, _files)[number % 3](rng, here)


@functools.cache
def expected(name: str, world: pathlib.Path) -> dict[str, bytes]:
    """Return the results of the undamaged command, kept next to the world for the next process."""
    here = world / f"expected-{name}"
    if not here.exists():
        half = world.parent / f"half-{os.getpid()}"
        shutil.copytree(world, half, ignore=shutil.ignore_patterns("expected-*"))
        worlds.write_configs(half)
        code = worlds.invoke(name, worlds.arguments(name, half))
        if code != 0:
            raise RuntimeError(f"The undamaged {name} ends with {code}.")
        half.rename(here)
    return worlds.made(name, here)


@functools.cache
def command_flags(name: str) -> tuple[tuple[str, bool], ...]:
    """(name, whether it is a switch) of every flag of a command, from the parser that it makes for
    itself."""
    found = []

    class Seen(Exception):
        pass

    def parse(self, argv):
        found.extend((name, spec.is_switch) for name, spec in sorted(self.settings.items()))
        raise Seen

    original, arguments.Parser.parse = arguments.Parser.parse, parse
    try:
        importlib.import_module(f"ddpm_jax.cli.{name}").main([])
    except Seen:
        pass
    finally:
        arguments.Parser.parse = original
    return tuple(found)


def _flags(rng, here):
    """Nonsense in one or two flags, or several in earnest that may not go together."""
    name = rng.choice(worlds.COMMANDS)
    argv = worlds.arguments(name, here)
    known = [(flag, switch) for flag, switch in command_flags(name) if flag not in NOT_FUZZED]
    if rng.random() < 0.5:
        for flag, switch in rng.sample(known, min(len(known), rng.choice((1, 2, 3, 4)))):
            if switch:
                argv += [f"--{flag}"]
            elif flag in FLAGS:
                argv += [f"--{flag}", rng.choice(FLAGS[flag]).replace("@", f"{here}/")]
        return Case(name, argv, "flags in earnest", False)
    for _ in range(rng.choice((1, 1, 2))):
        flag, switch = rng.choice(known)
        value = rng.choice(TEXTS + NUMBERS)
        if (
            flag in WRITTEN
            and os.path.isabs(value)
            and not value.startswith(("/dev/null", "/proc"))
        ):
            value = "x"
        kind = rng.random()
        if kind < 0.7:
            argv += [f"--{flag}"] if switch and rng.random() < 0.8 else [f"--{flag}", value]
        elif kind < 0.8:
            argv += [f"--{flag}={value}"]
        elif kind < 0.85:
            argv += [f"--{flag}"]
        elif kind < 0.9:
            argv.insert(rng.randrange(len(argv) + 1), value)
        elif kind < 0.95:
            argv += [f"--{flag[:-1]}", value]
        else:
            del argv[rng.randrange(len(argv))]
    return Case(name, argv, "flags", False)


def _fields(rng, here):
    """Nonsense in one or two fields of a config, or several in earnest that may not go together.

    They stand on the command line or in the file, of a new run or of one that is resumed.
    """
    name = rng.choice(("train", "train", "train", "import_first_stage"))
    of_first_stage = name == "import_first_stage" or rng.random() < 0.3
    base = (
        worlds.of_first_stage(here, rng.choice(("ae", "vae", "vq")))
        if of_first_stage
        else worlds.config(here)
    )
    argv = ["--config", str(here / "mine.py")]
    if name == "train":
        argv += ["--workdir", str(here / rng.choice(("new", "new", "run")))]
    else:
        argv += ["--weights", str(here / "weights.npz"), "--out", str(here / "new")]
    in_earnest = rng.random() < 0.5
    fields = sorted(
        FIELDS if in_earnest else set(dict(configs.flatten(configs.default_config()))) - COSTLY
    )
    said = []
    for field in rng.sample(
        fields, rng.choice((1, 2, 3, 4)) if in_earnest else rng.choice((1, 1, 2))
    ):
        typed = rng.random() < 0.5
        value = rng.choice(FIELDS[field] if in_earnest else TEXTS + NUMBERS if typed else VALUES)
        if typed:
            argv += [f"--config.{field}={value}"]
        else:
            group, _, leaf = field.rpartition(".")
            inside = dict(base.get(group, {})) if group else base
            inside[leaf] = value
            base |= {group: inside} if group else {}
        said.append(f"{field}={str(value)[:80]!r}")
    worlds.write_config(here / "mine.py", base)
    return Case(name, argv, "; ".join(said), False)


STATE, CONFIG = "checkpoints/4/state", "checkpoints/4/config/metadata"
READS = {  # command -> what it reads
    "train": (
        "run/checkpoints",
        f"run/{CONFIG}",
        "run/config.json",
        "run/metrics.jsonl",
        "pictures",
    ),
    "sample": (
        f"run/{STATE}",
        f"run/{STATE}/_METADATA",
        f"run/{CONFIG}",
        "generated",
        "generated/manifest.json",
    ),
    "evaluate": ("run/checkpoints/4", f"run/{CONFIG}", "pictures"),
    "plot": ("run/config.json", "run/metrics.jsonl"),
    "draw": ("stage/checkpoints/4", f"stage/{CONFIG}", "pictures"),
    "ema": (f"run/{STATE}", f"run/{CONFIG}"),
    "encode": ("stage/checkpoints/4", f"stage/{CONFIG}", "photo.png"),
    "decode": ("stage/checkpoints/4", "latents.npz"),
    "import_first_stage": ("weights.safetensors", "weights.npz"),
}
# under digests or checksums: damage that goes unnoticed changes nothing
PROVED = ("run", "stage", "latents.npz")


def _files(rng, here):
    name = rng.choice(sorted(READS))
    what = rng.choice(READS[name])
    argv = worlds.arguments(name, here)
    if what == "weights.npz":
        argv[argv.index(str(here / "weights.safetensors"))] = str(here / what)
    if name == "sample" and what.startswith("generated"):
        argv[argv.index(str(here / "out"))] = str(here / "generated")
    if name == "sample" and rng.random() < 0.2:
        what = rng.choice(("photo.png", "mask.png"))
        argv += ["--inpaint", str(here / "photo.png"), "--mask", str(here / "mask.png")]
    files = [here / what] if (here / what).is_file() else _below(here / what)
    file = rng.choice(files)
    said = f"{os.path.relpath(file, here)}: {_damage(rng, file, files)}"
    if rng.random() < 0.7 and _seal(file):
        said += ", and SHA256SUMS made to agree"
        return Case(name, argv, said, False)
    same = what.split("/")[0] in PROVED and "--mask" not in argv
    return Case(name, argv, said, same)


def _below(folder):
    """Its files, in an order that does not change with the random names that Orbax gives to
    some."""

    def place(path):
        random_name = len(path.name) == 32
        return (
            path.parent,
            path.stat().st_size if random_name else 0,
            "" if random_name else path.name,
        )

    return sorted((path for path in folder.rglob("*") if path.is_file()), key=place)


def _below_length(rng, length):
    """Not `randrange`, which draws more often for some lengths: those of files may differ by a
    digit of a time."""
    return int(rng.random() * length)


def _damage(rng, file, others):
    content = file.read_bytes()
    if (file.suffix in (".json", ".jsonl") or content[:1] == b"{") and rng.random() < 0.6:
        return _rewrite_json(rng, file, content)
    kind = rng.choice(
        (
            "flip",
            "flip",
            "cut",
            "empty",
            "more",
            "zeros",
            "swap",
            "gone",
            "folder",
            "pipe",
            "zero",
            "loop",
            "nowhere",
            "head",
        )
    )
    match kind:
        case "flip" if content:
            place = _below_length(rng, len(content))
            file.write_bytes(
                content[:place]
                + bytes([content[place] ^ 1 << rng.randrange(8)])
                + content[place + 1 :]
            )
            return f"a bit of byte {place} flipped"
        case "head" if content:
            place = _below_length(rng, min(64, len(content)))
            file.write_bytes(content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :])
            return f"byte {place} replaced"
        case "cut" if content:
            length = _below_length(rng, len(content))
            file.write_bytes(content[:length])
            return f"cut to {length} bytes"
        case "zeros":
            file.write_bytes(bytes(len(content)))
        case "more":
            file.write_bytes(content + b'\x00PK\x03\x04{["')
        case "swap":
            other = rng.choice(others)
            file.write_bytes(other.read_bytes())
            return f"what is in {other.name}"
        case "gone":
            file.unlink()
        case "folder":
            file.unlink()
            file.mkdir()
        case "pipe":
            file.unlink()
            os.mkfifo(file)
        case "zero" | "loop" | "nowhere":
            file.unlink()
            file.symlink_to({"zero": "/dev/zero", "loop": file.name, "nowhere": "nowhere"}[kind])
        case _:
            file.write_bytes(b"")
    return kind


def _rewrite_json(rng, file, content):
    """Another value, field or name somewhere in it."""
    lines = content.split(b"\n") if file.suffix == ".jsonl" else [content]
    number = _below_length(rng, len(lines))
    try:
        value = json.loads(lines[number])
    except ValueError:
        lines[number] = rng.choice(JSON).encode()
        file.write_bytes(b"\n".join(lines))
        return "a line replaced"
    mark = "@@fuzz@@"
    where, inside, key = "the whole", None, None
    for _ in range(rng.randrange(1, 6)):
        at = inside[key] if inside is not None else value
        if not (isinstance(at, dict | list) and at):
            break
        inside, key = (
            at,
            rng.choice(sorted(at)) if isinstance(at, dict) else _below_length(rng, len(at)),
        )
        where = f"{where}.{key}"
    new = rng.choice(JSON)
    if inside is None:
        lines[number] = new.encode()
    elif rng.random() < 0.2:
        del inside[key]
        new = "deleted"
        lines[number] = json.dumps(value).encode()
    elif rng.random() < 0.2 and isinstance(inside, dict):
        new = rng.choice(("\x1b[2J", "x" * 300, "", "seed", "__class__", "\u202e"))
        inside[new] = inside.pop(key)
        lines[number] = json.dumps(value, ensure_ascii=False).encode()
    else:
        inside[key] = mark
        lines[number] = json.dumps(value).replace(f'"{mark}"', new).encode()
    file.write_bytes(b"\n".join(lines))
    return f"{where} is {new[:60]!r}"


def _seal(file):
    """Makes the digests of an item of a checkpoint agree with what has become of it: a stranger
    would."""
    from ddpm_jax.checkpoints import digests

    for folder in file.parents:
        if (folder / digests.SUMS).is_file() and file.name != digests.SUMS:
            if not file.is_file():
                return False
            (folder / digests.SUMS).unlink()
            digests.write(folder)
            return True
    return False
