"""What a benchmark of one graphics card says about another: the share of each ceiling goes along, not the time.

Reads what `bench/gpu.sh` writes. Decoding is bound by bandwidth and predicted from the sum of its kernels' times, a
prompt by the rate of products. Sums in float16 double that rate on GeForce cards and nowhere else, so a prompt with
them is predicted from the shares that the two kinds of kernel reach, each of its own ceiling. What a card does besides
(its cache, its launches beyond `LAUNCH_S`) is in the range that `predict` gives.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gramme.config import ConfigError, ModelConfig
from gramme.plan.gpus import GPU, Ceiling, Prediction, predict, share
from gramme.plan.roofline import LAUNCHES_A_LAYER

DECODE, PROMPT = "1 x 256", "1024 captured"  # of the benchmark's engine part
TILES: dict[Ceiling, str] = {  # of its ops part
    "fp32_accumulate": "tiles, sums in float32", "fp16_accumulate": "tiles, sums in float16"}
STEP_LAUNCHES = 6  # of a step outside its layers: embedding, the last norm, two selections of rows, head, choice


@dataclass(frozen=True, slots=True)
class Shares:
    """Of each ceiling of `card` that one benchmark reached, and the work that it had to do."""

    card: GPU
    shares: Mapping[str, float]
    decode_bytes: float  # of a step of one sequence with a context of 256 tokens
    prompt_ops: float  # of a prompt of 1,024 tokens
    launches: int  # of a decoding step


def shares(card: GPU, results: Mapping[str, Any], model: ModelConfig) -> Shares:
    """Raises ConfigError, naming it, when a figure is missing: its part was not run, or left it out."""
    try:
        step, prompt_s = results["engine"]["decode"][DECODE], results["engine"]["ttft"][PROMPT]["uncached_s"]
        tiles = {kind: share(card, kind, results["ops"][name]["ops_s"], 1) for kind, name in TILES.items()}
    except KeyError as error:
        raise ConfigError(f"the results have no figure {error}: run that part of the benchmark again") from None
    parameters = sum(rows * columns * n for rows, columns, n in model.matrices()[1:])
    ops = 2.0 * parameters * 1024 + 2.0 * 1024**2 * model.heads * model.head_dim * model.layers
    whole = share(card, "fp32_accumulate", ops, prompt_s)
    return Shares(card, {
        "bandwidth": share(card, "bandwidth", step["bytes"], step["kernels_s"]), "fp32_accumulate": whole,
        "fp16_accumulate": whole * tiles["fp16_accumulate"] / tiles["fp32_accumulate"],
    }, step["bytes"], ops, LAUNCHES_A_LAYER * model.layers + STEP_LAUNCHES)


def decode(s: Shares, card: GPU) -> Prediction:
    """Seconds of a step of one sequence on another card."""
    return predict(card, {"bandwidth": s.decode_bytes}, s.shares, s.launches)


def prompt(s: Shares, card: GPU, accumulate: str) -> Prediction:
    """Seconds to the first token of 1,024 on another card, sums in "fp32_accumulate" or "fp16_accumulate"."""
    return predict(card, {"bandwidth": s.decode_bytes, accumulate: s.prompt_ops}, s.shares)
