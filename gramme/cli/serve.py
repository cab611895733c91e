"""`gramme serve`: hands the settled options to the server."""
import argparse

from gramme.cli.flags import settle
from gramme.config import EngineConfig
from gramme.serve.options import ServeOptions
from gramme.serve.process import serve


def main(args: argparse.Namespace) -> int:
    return serve(settle(args, EngineConfig), settle(args, ServeOptions))
