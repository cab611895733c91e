"""Everything up to the engine imports where neither the server's packages, nor grammars, nor torch are installed."""
import subprocess
import sys
from pathlib import Path

from test_architecture import MAY_BE_HEAVY, RANK

import gramme

ROOT = Path(gramme.__file__).parent
ABSENT = ("msgspec", "starlette", "uvicorn", "uvloop", "httptools", "prometheus_client", "llguidance", "torch",
          "triton", "transformers")
IMPORT = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

absent, names = (argument.split(",") for argument in sys.argv[1:])
sys.meta_path.insert(0, Absent())
for name in names:
    importlib.import_module(name)
from gramme.kernels.load import backend
assert backend("reference").ops.matmul
"""


def modules():
    """Of every unit up to the engine, those that may not need torch."""
    for path in sorted(ROOT.rglob("*.py")):
        file = path.relative_to(ROOT)
        unit = file.parts[0].removesuffix(".py")
        if RANK.get(unit, 99) <= RANK["llm"] and not file.as_posix().startswith(MAY_BE_HEAVY):
            yield ".".join(("gramme", *file.with_suffix("").parts)).removesuffix(".__init__")


def test_the_engine_and_all_below_it_need_no_server_no_grammars_and_no_torch():
    names = list(modules())
    assert "gramme.llm.engine" in names and "gramme.runtime.padded" in names and len(names) > 60
    run = subprocess.run([sys.executable, "-c", IMPORT, ",".join(ABSENT), ",".join(names)], capture_output=True,
                         text=True, timeout=300, cwd=ROOT.parent)
    assert run.returncode == 0, run.stderr[-2000:]
