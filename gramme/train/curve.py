"""Draws a run's losses from its log. Knows only the records of log.jsonl."""
import json
from pathlib import Path

import numpy as np

SMOOTH = 100  # steps


def draw(log: Path, out: Path) -> None:
    """A small PNG: each step's loss, the running mean over `SMOOTH` steps, and the held-out loss where it was taken."""
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text().splitlines()]
    millions = np.cumsum([r["tokens"] for r in records]) / 1e6
    losses = np.array([r["loss"] for r in records])
    looked = [i for i, r in enumerate(records) if "held_out" in r]
    figure = Figure(figsize=(6, 3), dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.plot(millions, losses, ".", markersize=1, alpha=0.25, label="a step")
    if len(losses) >= SMOOTH:
        mean = np.convolve(losses, np.full(SMOOTH, 1 / SMOOTH), "valid")
        axes.plot(millions[SMOOTH - 1 :], mean, label=f"mean of {SMOOTH} steps")
    axes.plot(millions[looked], [records[i]["held_out"] for i in looked], "k.-", markersize=4, linewidth=0.8,
              label="held-out translations")
    axes.set(xlabel="million tokens", ylabel="loss, nats per token")
    axes.legend(frameon=False)
    figure.savefig(out)
