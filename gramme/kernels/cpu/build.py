"""Compiles the C++ kernels into one shared library beside this file. Knows the units and their flags, nothing else.

`python -m gramme.kernels.cpu.build` does it by hand; installing the package does it by itself.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gramme.kernels.cpu.library import LIBRARY

HERE = Path(__file__).parent
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra",
         "-Wno-psabi", "-Wno-maybe-uninitialized"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
X86_64 = {
    "level_avx2.cpp": AVX2,
    "level_avxvnni.cpp": [*AVX2, "-mavxvnni"],
    "level_avx512.cpp": [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"],
}
AARCH64 = {"level_neon.cpp": ["-march=armv8.2-a+dotprod"]}
LEVELS = {"x86_64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}  # by the processor that is compiled for
UNITS = {"level_generic.cpp": [], "dispatch.cpp": [], "threads.cpp": ["-pthread"]}
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]


class BuildError(RuntimeError):
    """There is no compiler, or it failed; the message says which and what it printed."""


def compiler() -> str:
    """The C++ compiler's command. Raises BuildError when there is none."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    found = next((path for name in wanted if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError(f"no C++ compiler ({', '.join(wanted)}) was found")
    return found


def build(library: Path = LIBRARY, extra: list[str] | None = None) -> Path:
    """Compile and link; the library appears whole or not at all. Raises BuildError with the compiler's words.

    The processor is the compiler's: where CXX names a cross compiler, the library is for another machine.
    """
    cxx, flags = compiler(), [*FLAGS, *(extra or [])]
    units = UNITS | LEVELS.get(_call([cxx, "-dumpmachine"]).partition("-")[0], {})
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = [Path(folder) / f"{unit}.o" for unit in units]
        jobs = [[cxx, *flags, *more, "-c", str(HERE / unit), "-o", str(o)]
                for (unit, more), o in zip(units.items(), objects, strict=True)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_call, jobs))
        new = Path(folder) / "new.so"
        link = [] if sys.platform == "darwin" else ["-Wl,-z,defs"] if not extra else []
        _call([cxx, *flags, "-shared", "-pthread", *link, *map(str, objects), "-o", str(new)])
        os.replace(new, library)
    return library


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command[:1])} failed: {done.stderr.strip()[:2000]}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(build(extra=SANITIZE if "--sanitize" in sys.argv else None))
    except BuildError as error:
        sys.exit(f"gramme: {error}")
