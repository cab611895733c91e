"""Draws a run's losses from its log. Knows only the records of log.jsonl."""
import json
from pathlib import Path

import numpy as np

SMOOTH = 30  # steps


def draw(log: Path, out: Path) -> None:
    """A small PNG: each step's loss, and the running mean over `SMOOTH` steps."""
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text().splitlines()]
    millions = np.cumsum([r["tokens"] for r in records]) / 1e6
    losses = np.array([r["loss"] for r in records])
    figure = Figure(figsize=(6, 3), dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.plot(millions, losses, ".", markersize=2, alpha=0.35)
    if len(losses) >= SMOOTH:
        axes.plot(millions[SMOOTH - 1 :], np.convolve(losses, np.full(SMOOTH, 1 / SMOOTH), "valid"))
    axes.set(xlabel="million tokens", ylabel="loss, nats per token")
    figure.savefig(out)
