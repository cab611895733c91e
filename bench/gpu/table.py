"""The results of this card as a table, and what its shares of the ceilings say about consumer cards."""
import json

import torch
from common import MODEL, path

from gramme.config import ConfigError
from gramme.plan.gpus import GPUS, gpu
from gramme.plan.transfer import TILES, decode, prompt, shares

CARDS = ("RTX 3090", "RTX 4060 Ti", "RTX 4090", "RTX 5090")


def main() -> None:
    results = json.loads(path().read_text())
    print(f"# {results['device']}, {results['model']}\n")
    for part in ("ops", "engine", "serve"):
        if part in results:
            print(f"## {part}\n")
            rows(results[part])
    predictions(results)


def rows(section: dict, prefix: str = "") -> None:
    """Every figure on a line: seconds as ms, rates as GB/s and TFLOP/s."""
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            figures = {k: v for k, v in value.items() if not isinstance(v, dict)}
            print(f"{name:44}", "  ".join(shown(k, v) for k, v in figures.items()))
            rows({k: v for k, v in value.items() if isinstance(v, dict)}, f"{name} ")
        else:
            print(f"{name:44}", shown("", value) if isinstance(value, float) else value)


def shown(key: str, value: object) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return f"{key} {value}"
    for suffix, factor, unit in (("bytes_s", 1e-9, "GB/s"), ("ops_s", 1e-12, "TFLOP/s"), ("tokens_s", 1, "tokens/s")):
        if key.endswith(suffix):
            return f"{value * factor:.1f} {unit}"
    if key.endswith(("seconds", "_s")):
        return f"{key.removesuffix('_s')} {value * 1e3:.3f} ms"
    return f"{key} {value:.3g}"


def predictions(results: dict) -> None:
    """Decoding alone with a short context, and a prompt of 1,024 tokens with sums of either kind."""
    try:
        s = shares(gpu(torch.cuda.get_device_name()), results, MODEL)
    except ConfigError as error:
        print(f"no prediction: {error}")
        return
    reached = ", ".join(f"{value:.0%} of {name}" for name, value in s.shares.items())
    print(f"\n## predicted from {s.card.name}, which reached {reached}\n")
    for name in CARDS:
        step, sums = decode(s, GPUS[name]), [prompt(s, GPUS[name], kind) for kind in TILES]
        prompts = ", ".join(f"{kind} {between(p.seconds * 1e3, p.low_s * 1e3, p.high_s * 1e3, 'ms')}"
                            for kind, p in zip(TILES, sums, strict=True))
        speed = between(1 / step.seconds, 1 / step.high_s, 1 / step.low_s, "tokens/s")
        print(f"{name:12} decode {speed}; 1,024 tokens: {prompts}")


def between(expected: float, low: float, high: float, unit: str) -> str:
    return f"{expected:.0f} {unit} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    main()
