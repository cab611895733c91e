"""Writes GGUF files for tests, from the format's description; no test in here."""
import struct

import numpy as np

SCALAR = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}
ARRAYS = {"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": 7,
          "uint64": 10, "int64": 11, "float64": 12}
TYPE_OF = {"float32": 0, "float16": 1, "bfloat16": 30}


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(v):
    if isinstance(v, str | bytes):
        return struct.pack("<I", 8) + string(v)
    if isinstance(v, np.ndarray):
        return struct.pack("<IIQ", 9, ARRAYS[v.dtype.name], v.size) + v.tobytes()
    if isinstance(v, list):
        return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(string, v))
    if isinstance(v, np.generic):
        return struct.pack("<I", ARRAYS[v.dtype.name]) + v.tobytes()
    kind, form = SCALAR[type(v)]
    return struct.pack("<I", kind) + struct.pack(form, v)


def header(metadata, infos, version=3, tensors=None, pairs=None):
    """`infos`: (name, dimensions fastest first, type, offset)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(infos) if tensors is None else tensors,
                                len(metadata) if pairs is None else pairs)
    out += b"".join(string(k) + value(v) for k, v in metadata.items())
    for name, dims, kind, offset in infos:
        out += string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        out += struct.pack("<IQ", kind, offset)
    return out


def gguf(metadata, tensors):
    """Bytes of a file. `tensors`: name -> a float array, or (type, shape, raw bytes)."""
    align, infos, data = metadata.get("general.alignment", 32), [], b""
    for name, t in tensors.items():
        kind, shape, raw = t if isinstance(t, tuple) else (TYPE_OF[t.dtype.name], t.shape, t.tobytes())
        infos.append((name, shape[::-1], kind, len(data)))
        data += raw + bytes(-len(raw) % align)
    head = header(metadata, infos)
    return head + bytes(-len(head) % align) + data
