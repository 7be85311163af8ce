"""The sorted table of keys and values in a `.index` file of TensorFlow, and varints.

The format is LevelDB's (https://github.com/google/leveldb/blob/main/doc/table_format.md):

- blocks, each followed by a byte that says how it is compressed, and by a checksum of both;
- a footer of 48 bytes: where the block of metadata and the index lie, padding, a magic number.

A block is entries, then the positions of some of them, 4 bytes each, and their number. An entry
leaves out what its key has in common with the one before. The values of the index say where the
other blocks lie.
"""

from collections.abc import Iterator

from ddpm_jax.archives import BadArchive

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER = 48  # bytes
KEY = 1000  # bytes
ENTRIES = 100_000
_TRAILER = 5  # bytes after a block
_CASTAGNOLI = 0x82F63B78  # polynomial of CRC-32C, bits reversed


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a table, in the order of the keys.

    Raises:
      BadArchive: it is damaged, compressed, or has more than `ENTRIES` entries.
    """
    if len(data) < FOOTER or data[-8:] != MAGIC:
        raise BadArchive("it is no table of TensorFlow")
    footer = data[-FOOTER:-8]
    _, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    end, count, last = 0, 0, None
    for _, handle in _entries(_block(data, *index)):
        place, _ = _handle(handle, 0)
        if place[0] < end:
            raise BadArchive("its blocks overlap")
        end = sum(place)
        for key, value in _entries(_block(data, *place)):
            count += 1
            if count > ENTRIES:
                raise BadArchive(f"it has more than {ENTRIES:,} entries")
            if last is not None and key <= last:
                raise BadArchive("its names are not in order")
            last = key
            yield key, value


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the whole number of at most 64 bits that begins at a position, and where it ends.

    Raises:
      BadArchive: it is cut off or longer.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 1 << 64:
                break
            return value, at
    raise BadArchive("a number in it is cut off")


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of LevelDB: CRC-32C, rotated by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_CASTAGNOLI if byte & 1 else 0)
    return byte


_CRC = [_crc_of_byte(byte) for byte in range(256)]


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return position and size of a block, and where their numbers end."""
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + _TRAILER > len(data) - FOOTER:
        raise BadArchive("a block of it lies beyond its end")
    checksum = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    if masked_crc32c(data[offset : end + 1]) != checksum:
        raise BadArchive("the checksum of a block of it does not agree")
    if data[end]:
        raise BadArchive("its blocks are compressed, which TensorFlow does no longer since 1.2")
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = 4 * (1 + int.from_bytes(block[-4:], "little"))
    end, at, key = len(block) - restarts, 0, b""
    if len(block) < 4 or end < 0:
        raise BadArchive("a block of it is damaged")
    while at < end:
        shared, at = read_varint(block, at)
        own, at = read_varint(block, at)
        length, at = read_varint(block, at)
        if shared > len(key) or shared + own > KEY or at + own + length > end:
            raise BadArchive("an entry of it is damaged")
        key = key[:shared] + block[at : at + own]
        at += own
        yield key, block[at : at + length]
        at += length
