"""What a quantisation will take, said before it starts: peak memory, operations, time at this machine's speed."""
import time
from dataclasses import dataclass, replace

import torch

from gramme.config import ModelConfig
from gramme.evals.subject import KEPT_TOKENS, LOGIT_ROWS, PASS_TOKENS
from gramme.quantize.device import wait
from gramme.quantize.recipe import Recipe

BASE_BYTES = 600 << 20  # Python, torch and their buffers
# Beside a GPU; these four are assumed, for none was at hand.
GPU_HOST_BYTES = 2 << 30  # Python, torch, the driver and their buffers
GPU_BASE_BYTES = 300 << 20  # the libraries' scratch memory and what a window's activations take
GPU_INVERSE = 6  # matrices of the moments' size: solvers there copy what they are given
GPU_COLUMN_S = 60e-6  # GPTQ's six small operations for a column, each of which the host must start
PROBE = 1024  # columns of the matrix whose product shows the machine's speed
HARM_TOKENS = 1024  # of calibration text, on which the layers that harm most are found
LOGIT_ARRAYS = 6  # of LOGIT_ROWS in float64, while two models' distributions are compared


@dataclass(frozen=True)
class Need:
    memory_bytes: int  # of the host
    gpu_bytes: int  # of the GPU; 0 where there is none
    disk_bytes: int  # of solved layers and results
    flops: float
    seconds: float


def need(m: ModelConfig, recipes: list[Recipe], tokens: int, flops_per_s: float, check_tokens: int = 0,
         harms: bool = False, gpu: bool = False) -> Need:
    """For so many tokens of calibration text and of text to judge by; `harms`: harmful layers are looked for.

    Memory, while solving: the embedding, three layers in float32 (the layer, and copies of its largest matrices while
    they are solved), the moments, four matrices of their size for GPTQ's inverse, the calibration streams before and
    after. Judging takes its turn, so the larger of the two counts. Beside a GPU all this is in its memory, and the host
    has what is read and written: the embedding or a layer, twice, the layer's codes, the streams.
    """
    layer = replace(m, layers=1, windows=())
    embed = 4 * m.vocab_size * m.width
    matrices = [(rows, columns) for rows, columns, _ in layer.matrices()[1:]]
    layer_bytes = 4 * sum(rows * columns for rows, columns in matrices)
    inputs = [columns for _, columns in matrices]
    gptq = any(r.method == "gptq" for r in recipes)
    inverse = 4 * (GPU_INVERSE if gpu else 4) * max(inputs) ** 2 if gptq else 0
    memory = embed + 3 * layer_bytes + 4 * sum(k * k for k in inputs) + inverse + 16 * tokens * m.width
    if check_tokens or harms:
        logits = 8 * LOGIT_ARRAYS * LOGIT_ROWS * m.vocab_size
        memory = max(memory, logits + _judging_bytes(m, recipes, layer_bytes, check_tokens, harms))
    codes = int(layer_bytes / 4 * 1.3) * len(recipes)
    host = 2 * max(embed, layer_bytes) + codes + 8 * tokens * m.width + 8 * LOGIT_ARRAYS * LOGIT_ROWS * m.vocab_size
    disk = int(m.layers * layer_bytes / 4 * 1.3 * len(recipes)) + 8 * tokens * m.width
    disk += sum(_result_bytes(m, m.layers * layer_bytes // 4, r) for r in recipes)
    flops = m.layers * (_forward(matrices, tokens) + sum(_solving(matrices, r) for r in recipes))
    flops += _judging(m, sum(rows * columns for rows, columns in matrices), len(recipes), check_tokens, harms)
    seconds = flops / flops_per_s
    if not gpu:
        return Need(BASE_BYTES + memory, 0, disk, flops, seconds)
    columns = m.layers * sum(k * n for k, n in zip(inputs, (3, 1, 2, 1), strict=True))  # q, k, v; o; gate, up; down
    seconds += GPU_COLUMN_S * columns * sum(r.method == "gptq" for r in recipes)
    return Need(GPU_HOST_BYTES + host, GPU_BASE_BYTES + memory, disk, flops, seconds)


def speed(device: str = "cpu") -> float:
    """Operations a second of a float32 product, the best of three."""
    a = torch.ones(PROBE, PROBE, device=device)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        a @ a
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * PROBE**3 / best


def _result_bytes(m: ModelConfig, weights: int, r: Recipe) -> int:
    """The files of a result: codes with a scale and perhaps a zero point for each group, the embedding, the head."""
    ends = m.vocab_size * m.width * (1 if m.tied_embeddings else 2)
    each = 1 + 3 / r.group if r.rounds_ends else 4 if m.dtype == "float32" else 2
    return int(weights * (r.bits / 8 + 3 / r.group) + ends * each)


def _judging_bytes(m: ModelConfig, recipes: list[Recipe], layer_bytes: int, tokens: int, harms: bool) -> int:
    """The embedding and the head, twice where the format rounds them, two layers (as read and as laid out), the states
    of both models, and those that the original keeps."""
    ends = 4 * m.vocab_size * m.width * (1 if m.tied_embeddings else 2)
    states = min(tokens, KEPT_TOKENS) + 3 * min(tokens, PASS_TOKENS) + harms * (m.layers + 2) * HARM_TOKENS
    return ends * (2 if any(r.rounds_ends for r in recipes) else 1) + 2 * layer_bytes + 4 * states * m.width


def _judging(m: ModelConfig, layer: int, recipes: int, tokens: int, harms: bool) -> float:
    """The original once and each result on every token, and, where harms are found, a model for each layer."""
    head, many = m.vocab_size * m.width, HARM_TOKENS * recipes * harms * (m.layers + 1)
    return 2.0 * tokens * ((recipes + 1) * m.layers * layer + 2 * recipes * head) + 2.0 * many * (
        m.layers * layer / 2 + 2 * head)


def _forward(matrices: list[tuple[int, int]], tokens: int) -> float:
    """The layer on every token, and the moments of its inputs."""
    return 2.0 * tokens * sum(rows * columns + columns * columns for rows, columns in matrices)


def _solving(matrices: list[tuple[int, int]], r: Recipe) -> float:
    """Clipping tries 15 ranges on diagonal blocks; GPTQ inverts and spreads errors; AWQ tries 20 scales on 1024 rows;
    the loss that is reported takes two products with the moments."""
    clip = sum(15 * 2.0 * rows * columns * r.group for rows, columns in matrices) * (r.method != "rtn")
    report = sum(4.0 * min(rows, 2048) * columns * columns for rows, columns in matrices)
    if r.method == "gptq":
        return clip + report + sum(1.0 * rows * columns * columns + 2.0 * columns**3 for rows, columns in matrices)
    if r.method == "awq":
        return clip + report + sum(20 * 4.0 * min(rows, 2048) * columns * columns for rows, columns in matrices)
    return clip + report
