"""`gramme bench compare A B`: a table of ratios; ends with one line of JSON."""
import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gramme.bench.compare import compare, read, table


def main(args: argparse.Namespace) -> None:
    a, b = read(Path(args.a)), read(Path(args.b))
    rows = compare(a, b)
    for name, record in (("A", a), ("B", b)):
        print(f"{name}: {_what(record)}")
    for line in table(rows):
        print(line)
    judged = [asdict(r) | {"ratio": r.ratio, "verdict": r.verdict} for r in rows]
    print(json.dumps({"bench": "compare", "rows": judged}))


def _what(record: dict[str, Any]) -> str:
    """What was measured, in a line."""
    said = record.get("subject") or {key: record.get(key) for key in ("model", "backend", "dtype", "threads")}
    machine = record.get("machine")
    name = f"{machine['name']}, {machine['cores']} cores" if isinstance(machine, dict) else str(machine)
    return ", ".join([*(str(v) for v in said.values() if v), name, *([record["date"]] if "date" in record else [])])
