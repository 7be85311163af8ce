"""Files of `torch.save` and snapshots of EDM made opcode by opcode, so that tests need no PyTorch."""

import pickle
import struct
import zipfile

import numpy as np

from ddpm_jax.interop.torch_files import MAGIC, VERSION

FLOATS = np.arange(24, dtype="<f4")
FLOAT_BYTES = FLOATS.tobytes()
STORAGE = b"ctorch\nFloatStorage\n"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value):
    return b"J" + struct.pack("<i", value)


def several(values):
    return b"(" + b"".join(map(whole, values)) + b"t"


def storage(key="0", size=24, kind=STORAGE):
    return b"(" + text("storage") + kind + text(key) + text("cpu") + whole(size) + b"tQ"


def tensor(
    shape=(4, 6), strides=(6, 1), offset=0, of=None, by=b"ctorch._utils\n_rebuild_tensor_v2\n"
):
    arguments = (of or storage()) + whole(offset) + several(shape) + several(strides)
    return by + b"(" + arguments + b"\x89ccollections\nOrderedDict\n)RtR"


def state_dict(value, name="w"):
    return b"}" + text(name) + value + b"s"


def dict_of(**items):
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def list_of(*items):
    return b"](" + b"".join(items) + b"e"


def write_zip(path, content, data=FLOAT_BYTES, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        for name, value in {"byteorder": b"little", "data/0": data, **members}.items():
            archive.writestr(f"archive/{name}", value)
    return path


def legacy(content, data=FLOATS, magic=MAGIC, version=VERSION, little=True, keys=("0",)):
    """The bytes of a file of PyTorch before 1.6."""
    head = [magic, version, {"protocol_version": VERSION, "little_endian": little}]
    parts = [pickle.dumps(value, 2) for value in head]
    parts += [b"\x80\x02" + content + b".", pickle.dumps(list(keys), 2)]
    parts += [struct.pack("<q", data.size), data.tobytes()]
    return b"".join(parts)


def write_legacy(path, content, data=FLOATS, **changes):
    path.write_bytes(legacy(content, data, **changes))
    return path


def blob(value):
    """Bytes as protocol 3 pickles them."""
    return b"B" + struct.pack("<I", len(value)) + value


def numbers(data=FLOATS, **changes):
    """A storage as a pickle without files of its own has it."""
    content = legacy(storage(size=data.size), data, **changes)
    return b"ctorch.storage\n_load_from_bytes\n" + blob(content) + b"\x85R"


def parameter(data=FLOATS, shape=(4, 6), strides=(6, 1)):
    view = tensor(shape, strides, of=numbers(data))
    return b"ctorch._utils\n_rebuild_parameter\n(" + view + b"\x88)tR"


def module(name="Net", state=b"}", **meta):
    fields = {"type": text("class"), "version": whole(6), "class_name": text(name), "state": state}
    made = dict_of(**(fields | {"module_src": text("open('EXECUTED', 'w')")} | meta))
    return b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + made + b"\x85R"


def net(**parts):
    return module(state=dict_of(**parts))


def container(name, state):
    return b"ctorch.nn.modules.container\n" + name.encode() + b"\n)\x81" + state + b"b"
