"""`gramme train`: a model from your own texts. The only verb that needs PyTorch."""
import argparse
import os
from pathlib import Path

from gramme.cli.flags import settle
from gramme.cli.options import TrainOptions
from gramme.config import ConfigError


def main(args: argparse.Namespace) -> None:
    asked, file = settle(args, TrainOptions), args.config or os.environ.get("GRAMME_CONFIG")
    if not file:
        raise ConfigError("train needs --config FILE, a recipe such as gramme/train/recipes/nano.toml")
    try:
        from gramme.train.run import run
    except ImportError as error:
        raise ConfigError(f"training needs PyTorch (pip install 'gramme-engine[train]'): {error}") from None
    folder = Path(asked.run) if asked.run else Path("runs") / Path(file).stem
    print(f"the model is in {run(Path(file), Path(asked.data), folder)}")
