"""Writes a judged result as a model directory: weights, config, tokenizer, card; whole or not at all."""
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gramme.config import ModelConfig
from gramme.formats.checkpoint import INDEX
from gramme.formats.grouped import Grouped
from gramme.formats.safetensors import write_safetensors
from gramme.formats.write_packed import awq, compressed_tensors, gptq
from gramme.kernels.reference import storage_dtype
from gramme.models.load import Source, shapes
from gramme.models.names import HF, their_name
from gramme.models.open import Opened
from gramme.quantize.gguf import write_model
from gramme.quantize.hf import hf_config
from gramme.quantize.recipe import Recipe
from gramme.quantize.work import write_text

EMBEDDING, HEAD = r"re:.*embed_tokens$", r"re:.*lm_head$"
SHARD_BYTES = 1 << 30  # of packed tensors, which are in memory until their shard is written
COPIED = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model*", "tekken.json", "special_tokens_map.json",
          "added_tokens.json", "vocab.json", "merges.txt", "chat_template.*", "generation_config.json")


def save(out: Path, model: Path | None, opened: Opened, recipe: Recipe, source: Source, card: str) -> None:
    """`model` is the original's directory, None for a dummy. `out` appears when it is complete."""
    beside = out.with_name(out.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _write(beside, model, opened, recipe, source, card)
    except OSError:  # a full disk needs the room
        shutil.rmtree(beside, ignore_errors=True)
        raise
    beside.rename(out)
    sync(out.parent)


def _write(beside: Path, model: Path | None, opened: Opened, recipe: Recipe, source: Source, card: str) -> None:
    m, text = opened.config, opened.text
    beside.mkdir(parents=True)
    for directory in dict.fromkeys(d for d in (text, model) if d is not None):
        for path in (p for pattern in COPIED for p in directory.glob(pattern) if p.is_file()):
            write_bytes(beside / path.name, path.read_bytes())
    write_text(beside / "README.md", card)
    if recipe.format == "gguf":
        write_model(beside / "model.gguf", text, m, opened.defaults, recipe.bits, source)
    else:
        _write_hf(beside, model, m, recipe, source)
    sync(beside)


def hf_tensors(m: ModelConfig, recipe: Recipe, source: Source) -> Iterator[tuple[str, np.ndarray]]:
    dtype = storage_dtype(m.dtype)
    packers = {"gptq": gptq, "awq": awq, "compressed-tensors": lambda w: compressed_tensors(w, _scale_dtype(m))}
    for ours, _ in shapes(m):
        name, a = their_name(ours, HF), source(ours)
        if isinstance(a, Grouped):
            for suffix, tensor in packers[recipe.format](a).items():
                yield f"{name.removesuffix('.weight')}.{suffix}", tensor
        else:
            yield name, a.astype(dtype)


def quantisation(m: ModelConfig, recipe: Recipe, eights: Iterable[int]) -> dict[str, Any]:
    """The `quantization_config` of config.json; `eights` are the layers that keep 8 bits."""
    kept = sorted(eights)
    if recipe.format == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": recipe.group, "zero_point": True, "version": "gemm",
                "modules_to_not_convert": None}
    if recipe.format == "gptq":
        dynamic = {rf"+:.*\.layers\.{_any(kept)}\..*": {"bits": 8}} if kept else None
        return {"quant_method": "gptq", "bits": recipe.bits, "group_size": recipe.group, "desc_act": False, "sym": True,
                "lm_head": False, "checkpoint_format": "gptq", "pack_dtype": "int32", "dynamic": dynamic}
    others = [i for i in range(m.layers) if i not in kept]
    groups = {"group_0": _ct_group(recipe.bits, recipe.group, [rf"re:.*layers\.{_any(others)}\..*"] if kept else
                                   ["Linear"])} if others else {}
    ends = [] if not recipe.rounds_ends else [EMBEDDING] if m.tied_embeddings else [EMBEDDING, HEAD]
    if targets := [*ends, *([rf"re:.*layers\.{_any(kept)}\..*"] if kept else [])]:
        groups[f"group_{len(groups)}"] = _ct_group(8, recipe.group, targets)
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
            "config_groups": groups, "ignore": [] if HEAD in ends else ["lm_head"], "kv_cache_scheme": None,
            "version": "0.20.0"}


def sync(directory: Path) -> None:
    """What a directory lists is on the disk only when the directory is."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())


def _write_hf(out: Path, model: Path | None, m: ModelConfig, recipe: Recipe, source: Source) -> None:
    own = model / "config.json" if model else None
    config = json.loads(own.read_text("utf-8")) if own and own.exists() else hf_config(m)
    quantised = quantisation(m, recipe, eight_bit_layers(m, recipe, source))
    write_text(out / "config.json", json.dumps(config | {"quantization_config": quantised}, indent=1) + "\n")
    if recipe.format == "gptq":  # older loaders look for it here
        write_text(out / "quantize_config.json", json.dumps(quantised, indent=1) + "\n")
    _write_shards(out, hf_tensors(m, recipe, source))


def _write_shards(out: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Shards are named when their number is known; one alone is model.safetensors."""
    files, home, total, shard = [], {}, 0, {}

    def flush() -> None:
        files.append(path := out / f"shard-{len(files)}")
        write_safetensors(path, shard, {"format": "pt"})
        shard.clear()

    for name, a in tensors:
        if shard and sum(t.nbytes for t in shard.values()) + a.nbytes > SHARD_BYTES:
            flush()
        shard[name], home[name], total = a, len(files), total + a.nbytes
    flush()
    names = ["model.safetensors"] if len(files) == 1 else [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    for path, name in zip(files, names, strict=True):
        path.rename(out / name)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {name: names[i] for name, i in home.items()}}
        write_text(out / INDEX, json.dumps(index, indent=1) + "\n")


def eight_bit_layers(m: ModelConfig, recipe: Recipe, source: Source) -> list[int]:
    if recipe.bits == 8:
        return []
    return [i for i in range(m.layers) if source(f"layers.{i}.q").bits == 8]


def _any(layers: Iterable[int]) -> str:
    return f"({'|'.join(map(str, layers))})"


def _ct_group(bits: int, group: int, targets: list[str]) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group,
               "dynamic": False}
    return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


def _scale_dtype(m: ModelConfig) -> np.dtype:
    return storage_dtype("bfloat16" if m.dtype == "bfloat16" else "float16")
