"""Dependencies point one way, and torch is needed only where the design says so. Reads the source, imports nothing."""
import ast
from pathlib import Path

import gramme

ROOT = Path(gramme.__file__).parent
RANK = {
    "config": 0, "request": 0, "core": 1, "plan": 1, "text": 1, "grammar": 1, "formats": 1, "kernels": 2, "quant": 3,
    "models": 4, "runtime": 5, "llm": 6, "serve": 7, "bench": 7, "evals": 7, "train": 8, "quantize": 8, "cli": 9,
    "__main__": 10,
}
HEAVY = {"torch", "triton", "transformers"}
MAY_BE_HEAVY = ("kernels/eager.py", "kernels/cuda/", "train/", "quantize/")


def imports():
    """(file relative to the package, dotted name) for every import, also inside functions."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            yield from ((path.relative_to(ROOT).as_posix(), name) for name in names)


def test_a_unit_imports_lower_ranks_only():
    seen = 0
    for file, name in imports():
        if not name.startswith("gramme.") or file == "__init__.py":
            continue
        mine, other = file.split("/")[0].removesuffix(".py"), name.split(".")[1]
        assert mine == other or RANK[other] < RANK[mine], f"{file} imports {name}"
        seen += 1
    assert seen > 50


def test_torch_is_imported_only_where_it_may_be():
    found = {file for file, name in imports() if name.split(".")[0] in HEAVY}
    assert "kernels/eager.py" in found
    assert all(file.startswith(MAY_BE_HEAVY) for file in found), found


def test_package_inits_are_empty():
    assert all(not p.read_text().strip() for p in ROOT.rglob("*/__init__.py"))


def test_test_files_have_names_of_their_own():
    """pytest imports them without a package, by name alone."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
