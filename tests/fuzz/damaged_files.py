"""Damaged and hostile files of weights: each is opened, or refused in one sentence, and nothing else.

    python -m tests.fuzz.damaged_files torch_zip 0:2000

makes cases 0 to 1999 of a kind of file, and prints those that fail. A case is a function of its
kind and number. Half of them are damaged in what a checksum covers, and get a new one.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
import zipfile

import flax.serialization
import ml_dtypes
import numpy as np
from safetensors.numpy import save

from ddpm_jax.errors import LONGEST, UsageError, sentence
from ddpm_jax.interop.containers import open_container

from ..interop import bundles, pickled
from ..interop.pickled import (
    container,
    dict_of,
    list_of,
    net,
    parameter,
    state_dict,
    tensor,
    text,
    whole,
)

HANGS = 20  # seconds, on a machine with nothing else to do
GONE = 0.04  # share of cases in which a file is missing, or is none
GROWS = 100_000_000  # bytes that a case may take beside its tensors
GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
TENSORS = {
    "conv_in.weight": GRID,
    "conv_in.bias": np.arange(5, dtype=np.float16),
    "norm.scale": np.arange(7).astype(ml_dtypes.bfloat16),
    "mid.columns": np.asfortranarray(GRID),
    "step": np.array(3),
    "empty": np.zeros((0, 3), np.float32),
}
C_ORDER = {name: np.ascontiguousarray(value) for name, value in TENSORS.items()}
PLAIN = {name: value for name, value in TENSORS.items() if value.dtype != ml_dtypes.bfloat16}
CHECKPOINT = dict_of(
    model=dict_of(**{"a.weight": tensor(), "b": tensor((6, 4), (1, 6)), "c": tensor((), (), 3)}),
    opt=dict_of(state=b"}", param_groups=list_of(dict_of(lr=b"G" + bytes(8)))),
    args=b"cargparse\nNamespace\n)\x81" + dict_of(image_size=whole(8)) + b"b",
    ema=list_of(state_dict(tensor()), whole(5)),
    version=text("1.2.3"),
)
SNAPSHOT = pathlib.Path(__file__).parents[1] / "goldens/checkpoints/edm/network-snapshot-000000.pkl"
NET = net(
    _parameters=dict_of(weight=parameter(), bias=b"N"),
    _modules=dict_of(enc=container("ModuleDict", dict_of(_modules=dict_of(a=net(rate=b"K\x03"))))),
    _init_kwargs=b"cdnnlib.util\nEasyDict\n)\x81" + b"(" + text("width") + b"K\x08u",
)
EXTREMES = [
    n.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for order in ("little", "big")
    for n in (0, 1, (1 << 8 * size) - 1, 1 << 8 * size - 1, (1 << 8 * size - 1) - 1)
]
# what begins or ends objects in the formats, and what would be executed
WORDS = (
    *(b"\x80\x02", b"}(", b"](", b"u", b"e", b"t", b"R", b"b", b"q\x00", b"h\x00", b"\x81", b"Q", b"."),
    *(b"cos\nsystem\n", b"cposix\nsystem\n(X\x09\x00\x00\x00touch EXECUTEDtR", b"(", b"0", b"2", b"\x8c\x02os"),
    *(b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\x81\xa1a" * 99, b"\x91" * 999),
    *(b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04", b'{"', b"]" * 50, b"[" * 5000, b"\xff" * 10, b"1e999", b"-1"),
)  # fmt: skip


def _zip(members, data):
    """The zip file with the bytes of one member replaced."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            archive.writestr(
                name, data if data is not None and name == next(iter(members)) else content
            )
    return made.getvalue()


def _torch_zip(folder, rng):
    path = pickled.write_zip(folder / "x", CHECKPOINT)
    if rng.random() < 0.5:
        return path, path
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path.write_bytes(_zip(members, _damaged(rng, members["archive/data.pkl"])))
    return path, None


def _torch_legacy(folder, rng):
    path = pickled.write_legacy(folder / "x", CHECKPOINT)
    return path, path


def _safetensors(folder, rng):
    path, data = folder / "x", save(C_ORDER, {"format": "pt"})
    path.write_bytes(data)
    if rng.random() < 0.5:
        return path, path
    length = int.from_bytes(data[:8], "little")
    header = _damaged_json(rng, data[8 : 8 + length])
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    return path, None


def _npz(folder, rng):
    path = folder / "x.npz"
    rng.choice((np.savez, np.savez_compressed))(path, **PLAIN)
    if rng.random() < 0.5:
        return path, path
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path.write_bytes(_zip(members, _damaged(rng, next(iter(members.values())))))
    return path, None


def _flax(folder, rng):
    tree = {
        "params": {
            name: dict(zip("ab", (value, 3), strict=True)) for name, value in C_ORDER.items()
        }
    }
    whole_size, flax.serialization.MAX_CHUNK_SIZE = flax.serialization.MAX_CHUNK_SIZE, 40
    try:
        tree["numbers"] = [1, 2.5, None, "x" * 40, 1j, np.float32(2)]
        (folder / "x").write_bytes(flax.serialization.msgpack_serialize(tree))
    finally:
        flax.serialization.MAX_CHUNK_SIZE = whole_size
    return folder / "x", folder / "x"


def _tensorflow(folder, rng):
    def change(entries):
        if rng.random() < 0.5:
            return entries
        key = rng.choice(sorted(entries))
        value = entries.pop(key)
        if rng.random() < 0.3:
            key = _damaged(rng, key)[: 1 << 16]
        else:
            value = _damaged(rng, value)
        return entries | {key: value}

    kinds = bundles.DTYPES
    tensors = {name: value for name, value in C_ORDER.items() if value.dtype.name in kinds}
    path = bundles.write_bundle(folder, tensors, change=change)
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{path.name}"\n')
    files = sorted(folder.iterdir())
    return rng.choice((path, folder)), rng.choice((None, *files, folder / f"{path.name}.index"))


def _edm(folder, rng):
    path = folder / "x"
    small = b"\x80\x03" + dict_of(ema=NET, loss_fn=net(P_mean=b"K\x01"), options=list_of()) + b"."
    path.write_bytes(SNAPSHOT.read_bytes() if rng.random() < 0.05 else small)
    return path, path


def _diffusers(folder, rng):
    for name in ("unet", "unet_ema", "scheduler"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(
            '{"_class_name": "UNet2DModel", "sides": [1, 2]}'
        )
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(save(C_ORDER))
    pickled.write_zip(folder / "unet_ema/diffusion_pytorch_model.bin", state_dict(tensor()))
    index = {"weight_map": {name: "model-1.safetensors" for name in C_ORDER}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(save(C_ORDER))
    return folder, rng.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])


KINDS = {
    "torch_zip": _torch_zip,
    "torch_legacy": _torch_legacy,
    "safetensors": _safetensors,
    "npz": _npz,
    "flax": _flax,
    "tensorflow": _tensorflow,
    "edm": _edm,
    "diffusers": _diffusers,
}


def _damaged(rng, data):
    """Bytes with one to five things wrong."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 2, 4, 8, 40, 400))
        match rng.randrange(9):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = rng.randbytes(size)
            case 4:
                extreme = rng.choice(EXTREMES)
                data[at : at + len(extreme)] = extreme
            case 5:  # a piece twice
                data[at:at] = data[max(0, at - size) : at]
            case 6:  # a piece elsewhere
                other = rng.randrange(len(data) + 1)
                data[at : at + size] = data[other : other + size]
            case 7:
                word = rng.choice(WORDS)
                data[at : at + rng.choice((0, len(word)))] = word
            case 8 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


def _damaged_json(rng, data):
    """A JSON object with a value or a name somewhere in it replaced."""
    value = json.loads(data)
    inside, key = value, rng.choice(sorted(value))
    while isinstance(inside[key], dict | list) and inside[key] and rng.random() < 0.8:
        inside = inside[key]
        key = rng.choice(sorted(inside)) if isinstance(inside, dict) else rng.randrange(len(inside))
    other = (
        0,
        -1,
        1 << 62,
        1 << 64,
        1e300,
        2.5,
        "",
        "F8_E4M3",
        "x" * 5000,
        None,
        True,
        [],
        {},
        [[0]],
    )
    if rng.random() < 0.2:
        del inside[key]
    else:
        inside[key] = rng.choice(other)
    return json.dumps(value).encode()


def make(kind, number, folder):
    """Write case `number` into an empty folder, and return the path to open."""
    rng = random.Random(f"{kind} {number}")
    path, file = KINDS[kind](folder, rng)
    if file is None:
        return path
    if rng.random() < GONE:
        file.unlink()
        if rng.random() < 0.5:
            file.mkdir()
        else:
            file.symlink_to(rng.choice(("/dev/zero", "nowhere", file.name)))
    elif file.suffix == ".json" and rng.random() < 0.5:
        file.write_bytes(_damaged_json(rng, file.read_bytes()))
    else:
        file.write_bytes(_damaged(rng, file.read_bytes()))
    return path


def fault(kind, number):
    """Return what is wrong with how a case is opened, or None, and whether it was refused."""
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        folder = pathlib.Path(place, "files")
        folder.mkdir()
        path = make(kind, number, folder)
        files = sorted(os.listdir(place))
        patience = HANGS * max(1, os.getloadavg()[0] / os.cpu_count())
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, patience)
        tracemalloc.start()
        try:
            refused = _open(path)
            peak = tracemalloc.get_traced_memory()[1]
        except Exception:
            return traceback.format_exc(), False
        finally:
            tracemalloc.stop()
            signal.setitimer(signal.ITIMER_REAL, 0)
        if peak > GROWS:
            return f"{peak:,} bytes of memory", refused
        if sorted(os.listdir(place)) != files:
            return "something was executed", refused
    return None, refused


def _open(path):
    """Open a file and read its tensors; return whether it is refused."""
    try:
        found = open_container(path)
        for group in found.groups.values():
            for name in group:
                np.array(group[name])
    except UsageError as error:
        said = sentence(error)
        if not said.endswith(".") or "\n" in said or len(said) > LONGEST + 20:
            raise AssertionError(f"no sentence: {said}") from error
        return True
    repr((found.facts, found.unread))
    return False


def _interrupt(*_):
    raise TimeoutError("no end")


def main():
    kind, numbers = sys.argv[1:]
    first, _, end = numbers.partition(":")
    refused = failed = 0
    began = time.monotonic()
    for number in range(int(first), int(end or int(first) + 1)):
        wrong, was_refused = fault(kind, number)
        refused += was_refused
        if wrong:
            failed += 1
            print(f"{kind} {number}: {wrong}", flush=True)
    print(
        f"{kind}: {failed} failed, {refused} refused, {time.monotonic() - began:.0f} s", flush=True
    )


if __name__ == "__main__":
    main()
