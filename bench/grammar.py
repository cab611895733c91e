"""What grammars cost a step: masks of 8 rows over 32,000 tokens, beside the time that a step takes.

    python bench/grammar.py [--step-ms 160] [--rows 8] [--vocab 32000]

The vocabulary is the embedded model's 4,096 tokens and pairs of them, up to the size asked for. The answers are random
walks through each grammar, so that strings, numbers and structure all occur. --step-ms is the step to compare with; the
default is 8 rows of a 1.1 B model in 4 bits on two cores (50 tokens/s together).
"""
import argparse
import json
import time
from itertools import product

import numpy as np

from gramme.grammar.compiler import Grammars, Vocabulary
from gramme.models.open import EMBEDDED
from gramme.request import SamplingParams, StructuredOutputsParams
from gramme.runtime.sampler import Choice, Chooser, _masks
from gramme.text.tokenizer import load_tokenizer

PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
          "required": ["name", "age"], "additionalProperties": False}
ORDER = {"type": "object", "properties": {
    "id": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}, "date": {"type": "string", "format": "date-time"},
    "lines": {"type": "array", "minItems": 1, "items": {"type": "object", "properties": {
        "what": {"type": "string", "maxLength": 40}, "count": {"type": "integer", "minimum": 1, "maximum": 999},
        "unit": {"enum": ["kg", "g", "piece"]}}, "required": ["what", "count", "unit"]}}},
    "required": ["id", "date", "lines"]}
FORMS = {"small schema": dict(json=PERSON), "nested schema": dict(json=ORDER), "any object": dict(json_object=True),
         "regex": dict(regex=r"(\w+ ){3,30}\w+\.")}


def vocabulary(size: int) -> Vocabulary:
    t = load_tokenizer(EMBEDDED)
    tokens = [t.token_bytes(i) for i in range(min(size, t.vocab_size))]
    plain = [tokens[i] for i in range(260, len(tokens)) if i not in t.special_ids]
    pairs = (a + b for a, b in product(plain, repeat=2))
    tokens += [next(pairs) for _ in range(size - len(tokens))]
    return Vocabulary(tokens, sorted(t.special_ids), [t.eos_id], t.encode_plain)


def measure(grammars: Grammars, form: dict, rows: int, vocab: int, steps: int) -> list[float]:
    """Seconds of each step's masks."""
    asked = StructuredOutputsParams(**form)
    compiled = grammars.compile(asked)
    while not compiled.ready:
        compiled.wait(1)
    make = lambda: Chooser(SamplingParams(structured_outputs=asked), 0, 0, frozenset(), vocab)
    choosers, answers, r, out = [make() for _ in range(rows)], [[] for _ in range(rows)], np.random.default_rng(0), []
    for c in choosers:
        c.matcher = compiled.matcher()
    for _ in range(steps):
        began = time.perf_counter()
        ended = [c.ended(a) for c, a in zip(choosers, answers)]
        mask = _masks([Choice(c, a, 0) for c, a in zip(choosers, answers)], vocab)
        out.append(time.perf_counter() - began)
        for i in range(rows):
            allowed = np.flatnonzero(np.unpackbits(mask[i].view(np.uint8), bitorder="little"))
            answers[i].append(int(r.choice(allowed)))
            if ended[i] or len(answers[i]) > 150 or answers[i][-1] == 1:
                answers[i], choosers[i].matcher = [], compiled.matcher()
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--step-ms", 160.0), ("--rows", 8), ("--vocab", 32000), ("--steps", 400)):
        p.add_argument(name, type=type(default), default=default)
    a = p.parse_args()
    grammars, result = Grammars(lambda: vocabulary(a.vocab)), {}
    for name, form in FORMS.items():
        before = grammars.meter.compile_s, grammars.meter.tokenizer_s
        took = np.array(measure(grammars, form, a.rows, a.vocab, a.steps)) * 1e3
        built = grammars.meter.tokenizer_s - before[1]
        compiled = (grammars.meter.compile_s - before[0] - built) * 1e3
        mean, p95 = took.mean(), np.percentile(took, 95)
        result[name] = {"mean_ms": round(float(mean), 3), "p95_ms": round(float(p95), 3),
                        "share_percent": round(float(100 * mean / a.step_ms), 2)}
        print(f"{name:14} compiled in {compiled:6.1f} ms; masks of {a.rows} rows: mean {mean:6.3f} ms, "
              f"p95 {p95:6.3f}, max {took.max():6.3f} = {100 * mean / a.step_ms:.2f} % of a step of {a.step_ms:g} ms")
    print(f"the vocabulary of {a.vocab} tokens was built once, in {grammars.meter.tokenizer_s * 1e3:.0f} ms")
    print(json.dumps({"bench": "grammar", "rows": a.rows, "vocab": a.vocab, "step_ms": a.step_ms, "forms": result}))


if __name__ == "__main__":
    main()
