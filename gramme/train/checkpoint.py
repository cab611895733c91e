"""Saves and restores everything that the next step depends on. Knows named tensors and optimizers, no model.

What else a step needs, its rows and its rate, follows from the step's number and the seed: there is no random state.
"""
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")


def save(folder: Path, weights: dict[str, Tensor], optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    """Atomic: a kill, or a power cut, leaves the old checkpoint or the new one."""
    tensors = {f"weight.{name}": a.detach() for name, a in weights.items()}
    for name, a in weights.items():
        state = next(o.state[a] for o in optimizers if a in o.state)
        tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS if moment in state}
    save_file(tensors, new := folder / "new.safetensors", {"step": str(step)})
    with new.open("rb") as f:
        os.fsync(f.fileno())
    new.replace(folder / f"checkpoint-{step:07d}.safetensors")
    for old in sorted(folder.glob("checkpoint-*.safetensors"))[:-1]:
        old.unlink()


def resume(folder: Path, weights: dict[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """The next step; 0 where there is no checkpoint. A matrix whose rule has changed starts without momentum."""
    found = sorted(folder.glob("checkpoint-*.safetensors"))
    if not found:
        return 0
    tensors, step = load_file(found[-1]), int(found[-1].stem.removeprefix("checkpoint-"))
    owners = {a: o for o in optimizers for group in o.param_groups for a in group["params"]}
    with torch.no_grad():
        for name, a in weights.items():
            a.copy_(tensors[f"weight.{name}"])
            moments = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS if f"{moment}.{name}" in tensors}
            if isinstance(owners[a], torch.optim.AdamW) or "momentum" in moments:
                owners[a].state[a] = {"step": torch.tensor(float(step)), **moments}
    return step
