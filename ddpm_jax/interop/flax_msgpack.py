"""Parameters as `flax.serialization` packs them, `.msgpack`: where the arrays of a file lie.

The file is one MessagePack map (https://github.com/msgpack/msgpack/blob/master/spec.md), nested.
Flax adds three types: 1 is an array and 3 a NumPy scalar, both packed as (shape, name of the type,
bytes); 2 is a complex number. An array of more than 1 GiB is a map of flat pieces. Everything else
that MessagePack can extend is refused.
"""

import mmap
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ddpm_jax.archives import BadArchive
from ddpm_jax.files import open_file
from ddpm_jax.interop.contents import DEEPEST, ENTRIES, LONGEST, Contents
from ddpm_jax.interop.tensor_store import Entry, Joined, Stored, store_of

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's types
_CHUNKED = "__msgpack_chunked_array__"  # key of a map that is an array in pieces
_DTYPES = {
    **{
        name: np.dtype(name).newbyteorder("<")
        for name in (
            *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
            *("float16", "float32", "float64", "complex64", "complex128"),
        )
    },
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "V2": np.dtype(ml_dtypes.bfloat16),  # of files before NumPy knew its name
}
