"""`gramme serve`: hands the settled options to the server."""
import argparse

from gramme.cli.flags import settle
from gramme.serve.process import serve


def main(args: argparse.Namespace) -> None:
    serve(settle(args, model=args.model), host=args.host, port=args.port, served_model_name=args.served_model_name,
          metrics_prefix=args.metrics_prefix)
