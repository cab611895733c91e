"""What a model file that lies costs before it is refused: seconds and memory of `gramme run`, one line each.

    python bench/bad_models.py      a minute; writes bench/results/bad_models.json

Every file is refused in one line; aimed at: 2 s, 200 MB. Large files are sparse, they take no disk.
"""
import json
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gramme.formats.files import MAX_JSON_BYTES
from gramme.formats.gguf import MAX_HEADER_BYTES as MAX_GGUF_HEADER
from gramme.formats.gguf import MAX_STRINGS
from gramme.formats.safetensors import MAX_HEADER_BYTES
from gramme.models.open import EMBEDDED

RESULTS = Path(__file__).parent / "results" / "bad_models.json"
LARGE = 64 << 30
CHILD = """import sys, time
from gramme.cli.main import run
code = run(["run", sys.argv[1], "-p", "a", "-n", "1"])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], time.process_time())
sys.exit(code)"""
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


def string(text: bytes) -> bytes:
    return U64.pack(len(text)) + text


def gguf(tensors: int, pairs: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + U32.pack(3) + U64.pack(tensors) + U64.pack(pairs) + rest


def full(start: bytes, repeated: bytes, end: bytes, size: int) -> bytes:
    """`size` bytes that begin and end so, with as much of `repeated` between as fits."""
    middle = repeated * ((size - len(start) - len(end)) // len(repeated))
    return (start + middle).ljust(size - len(end)) + end


def sparse(path: Path, head: bytes, size: int = LARGE) -> Path:
    with path.open("wb") as f:
        f.write(head)
        f.truncate(size)
    return path


def directory(d: Path, header: bytes, size: int, config: bytes | None = None) -> Path:
    """The embedded model with another model.safetensors."""
    for name in EMBEDDED.iterdir():
        (d / name.name).write_bytes(name.read_bytes())
    if config is not None:
        (d / "config.json").write_bytes(config)
    else:
        sparse(d / "model.safetensors", U64.pack(len(header)) + header, size)
    return d


def cases() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """(what is wrong, what makes it in an empty directory and returns what is to be run)"""
    key = gguf(0, 1, string(b"k"))
    strings = min(MAX_STRINGS, (MAX_GGUF_HEADER - 1024) // 24)
    vocabulary = gguf(0, 1, string(b"tokenizer.ggml.tokens") + U32.pack(9) + U32.pack(8) + U64.pack(strings))
    table = b"".join(string(b"t%013d" % i) + U32.pack(1) + U64.pack(1) + U32.pack(0) + U64.pack(32 * i)
                     for i in range(1 << 14))
    yield "GGUF, 64 GiB, zeros after the magic", lambda d: sparse(d / "x.gguf", gguf(0, 0))
    yield "GGUF, 64 GiB, 2^63 tensors", lambda d: sparse(d / "x.gguf", gguf(1 << 63, 0))
    yield "GGUF, 64 GiB, an array of 2^61 floats", lambda d: sparse(
        d / "x.gguf", key + U32.pack(9) + U32.pack(6) + U64.pack(1 << 61))
    yield "GGUF, 64 GiB, a text of 2^62 bytes", lambda d: sparse(d / "x.gguf", key + U32.pack(8) + U64.pack(1 << 62))
    yield "GGUF, a header of the greatest size, all of it words", lambda d: sparse(
        d / "x.gguf", vocabulary + b"".join(string(b"%016d" % i) for i in range(strings)))
    yield "GGUF, as many tensors as are read, the last beyond the end", lambda d: sparse(
        d / "x.gguf", gguf(1 << 14, 0, table), len(table) + 32 * ((1 << 14) - 1))
    yield "safetensors, 64 GiB, a header of 2^63 bytes", lambda d: _length(d, 1 << 63)
    yield "safetensors, 64 GiB, a header of zeros", lambda d: directory(d, bytes(MAX_HEADER_BYTES), LARGE)
    for text, name in ((b"[],", "lists"), (b"{},", "objects"), (b'"ab",', "texts"), (b"300,", "numbers")):
        yield f"safetensors, a header of the greatest size, all {name}", lambda d, text=text: directory(
            d, full(b'{"a": [', text, b"0]}", MAX_HEADER_BYTES), MAX_HEADER_BYTES + 8)
    yield "safetensors, a header of the greatest size, deep", lambda d: directory(
        d, b"[" * MAX_HEADER_BYTES, MAX_HEADER_BYTES + 8)
    entry = b'"%08d": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, '
    many = b"{" + b"".join(entry % i for i in range(MAX_HEADER_BYTES // len(entry % 0) - 1)) + b'"a": 3}'
    yield "safetensors, as many tensors as a header holds", lambda d: directory(d, many, len(many) + 8)
    for text, name in ((b"{},", "objects"), (b'"ab",', "texts")):
        yield f"config.json of the greatest size, all {name}", lambda d, text=text: directory(
            d, b"", 0, full(b'{"a": [', text, b"0]}", MAX_JSON_BYTES))
    yield "tokenizer_config.json, 64 GiB", lambda d: _tokenizer_config(d)
    yield "a zip archive of pickles called model.safetensors", lambda d: _pickle(d)


def _length(d: Path, length: int) -> Path:
    directory(d, b"", LARGE)
    sparse(d / "model.safetensors", U64.pack(length))
    return d


def _tokenizer_config(d: Path) -> Path:
    for path in EMBEDDED.iterdir():
        (d / path.name).write_bytes(path.read_bytes())
    sparse(d / "tokenizer_config.json", b"{")
    return d


def _pickle(d: Path) -> Path:
    directory(d, b"", 8)
    sparse(d / "model.safetensors", b"PK\x03\x04")
    return d


def cost(path: Path) -> dict[str, object]:
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                             stdin=subprocess.DEVNULL, text=True)
    out, said = child.communicate()
    peak_kb, cpu_s = out.split()[-2:]
    return {"exit": child.returncode, "seconds": round(time.monotonic() - began, 2),
            "cpu_seconds": round(float(cpu_s), 2), "peak_mb": round(int(peak_kb) * 1024 / 1e6),
            "lines": said.count("\n"), "said": said.strip()[:300]}


def main() -> None:
    found = {}
    for name, make in cases():
        with tempfile.TemporaryDirectory() as d:
            found[name] = cost(make(Path(d)))
        x = found[name]
        print(f"{x['seconds']:6.2f} s, CPU {x['cpu_seconds']:5.2f} s, {x['peak_mb']:4} MB  {name}\n    {x['said']}")
    worst = {key: max(x[key] for x in found.values()) for key in ("seconds", "cpu_seconds", "peak_mb", "lines")}
    RESULTS.parent.mkdir(exist_ok=True)
    record = {"command": "python bench/bad_models.py", "worst": worst, "cases": found}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"worst": worst, "refused": sum(x["exit"] == 2 for x in found.values()), "cases": len(found)}))


if __name__ == "__main__":
    main()
