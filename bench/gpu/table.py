"""The results of this card as a table, and what its shares of the ceilings say about consumer cards."""
import json

import torch
from common import MODEL, path

from gramme.config import ConfigError
from gramme.plan.gpus import GPUS, gpu, predict, share

CARDS = ("RTX 3090", "RTX 4060 Ti", "RTX 4090", "RTX 5090")
LAUNCHES = 8 * MODEL.layers + 6  # of a decoding step


def main() -> None:
    results = json.loads(path().read_text())
    print(f"# {results['device']}, {results['model']}\n")
    for part in ("ops", "engine", "serve"):
        if part in results:
            print(f"## {part}\n")
            rows(results[part])
    if "engine" in results:
        predictions(results["engine"])


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


def predictions(engine: dict) -> None:
    """Decoding alone with a short context, and a prompt of 1,024 tokens with sums in float32."""
    try:
        here = gpu(torch.cuda.get_device_name())
    except ConfigError as error:
        print(f"no prediction: {error}")
        return
    step, prompt = engine["decode"]["1 x 256"], engine["ttft"]["1024 captured"]["uncached_s"]
    parameters = sum(rows * columns * n for rows, columns, n in MODEL.matrices()[1:])
    operations = 2.0 * parameters * 1024 + 2 * 1024**2 * MODEL.heads * MODEL.head_dim * MODEL.layers
    shares = {"bandwidth": share(here, "bandwidth", step["bytes"], step["kernels_s"]),
              "fp32_accumulate": share(here, "fp32_accumulate", operations, prompt)}
    print(f"\n## predicted from {here.name}: {shares['bandwidth']:.0%} of the bandwidth while kernels run, "
          f"{shares['fp32_accumulate']:.0%} of the rate of products\n")
    for name in CARDS:
        decode = predict(GPUS[name], {"bandwidth": step["bytes"]}, shares, LAUNCHES)
        prefill = predict(GPUS[name], {"bandwidth": step["bytes"], "fp32_accumulate": operations}, shares)
        print(f"{name:12} decode {between(1 / decode.seconds, 1 / decode.high_s, 1 / decode.low_s, 'tokens/s')}, "
              f"1,024 tokens {between(prefill.seconds * 1e3, prefill.low_s * 1e3, prefill.high_s * 1e3, 'ms')}")


def between(expected: float, low: float, high: float, unit: str) -> str:
    return f"{expected:.0f} {unit} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    main()
