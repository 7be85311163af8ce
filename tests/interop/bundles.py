"""Checkpoints of TensorFlow written entry by entry, so that tests need no TensorFlow."""

import numpy as np

from ddpm_jax.interop.tensorflow_table import MAGIC, masked_crc32c

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bfloat16": 14, "float16": 19}


def varint(value):
    found = b""
    while value >= 128:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def field(number, value):
    """A field of a protocol buffer: a whole number, or bytes."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def header(shards=1, endianness=0):
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1))


def entry(dtype, shape, shard, offset, size, more=b""):
    sides = b"".join(field(2, field(1, side)) for side in shape)
    numbers = field(3, shard) + field(4, offset) + field(5, size)
    return field(1, dtype) + field(2, sides) + numbers + more


def block(entries, restart_every=4):
    """Keys and values as LevelDB keeps them, sharing what begins a key with the one before."""
    data, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % restart_every == 0:
            restarts.append(len(data))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        own = key[shared:]
        data += varint(shared) + varint(len(own)) + varint(len(value)) + own + value
        last = key
    ends = (restarts or [0], [len(restarts or [0])])
    return data + b"".join(n.to_bytes(4, "little") for part in ends for n in part)


def table(entries, blocks=2, compression=0):
    """A table of several blocks."""
    data, handles = b"", []

    def add(content):
        nonlocal data
        place = varint(len(data)) + varint(len(content))
        content += bytes([compression])
        data += content + masked_crc32c(content).to_bytes(4, "little")
        return place

    size = -(-len(entries) // blocks)
    for i in range(0, len(entries), size):
        part = entries[i : i + size]
        handles.append((part[-1][0], add(block(part))))
    footer = add(block([])) + add(block(handles, 1))
    return data + footer.ljust(40, b"\0") + MAGIC


def write_bundle(folder, tensors, prefix="model.ckpt-7", shards=2, change=None, **options):
    """Write a checkpoint, its variables in turns over the shards.

    `change` takes the entries of the table and returns others.
    """
    data, entries = [b""] * shards, {b"": header(shards)}
    for i, (name, value) in enumerate(sorted(tensors.items())):
        shard = i % shards
        place = (shard, len(data[shard]), value.nbytes)
        entries[name.encode()] = entry(DTYPES[value.dtype.name], value.shape, *place)
        data[shard] += np.ascontiguousarray(value).tobytes()
    entries = change(entries) if change else entries
    (folder / f"{prefix}.index").write_bytes(table(sorted(entries.items()), **options))
    for shard, content in enumerate(data):
        (folder / f"{prefix}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    return folder / prefix
