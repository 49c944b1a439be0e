"""`pets export`: export a model to ONNX."""

from __future__ import annotations

import argparse

from pets.cli.store_actions import MODEL_HELP
from pets.cli.tables import add_json, print_json

__all__ = ["add_arguments", "run_command"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets export` to its parser."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--to", required=True, metavar="FILE.onnx", help="path or URL to write")
    add_json(parser)


def run_command(arguments: argparse.Namespace) -> None:
    """Write the ONNX file, and print how much its outputs differ from PyTorch's.

    Raises:
        PetsError: The model cannot be used, or the outputs differ too much.
    """
    from pets.model import find_model
    from pets_core.inference.onnx import export_onnx

    difference = export_onnx(find_model(arguments.model).url, arguments.to)
    if arguments.json:
        print_json({"url": arguments.to, "max_difference": difference})
        return
    print(f"{arguments.to}  largest difference from PyTorch {difference:.1e}")
