"""`pets predict`: print a model's predictions for photos, without Prefect."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from pets.cli.store_actions import MODEL_HELP
from pets.cli.tables import add_json, print_json
from pets_core.errors import PetsError, without_queries

__all__ = ["add_arguments", "run_command"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets predict` to its parser."""
    parser.add_argument("model", metavar="MODEL", help=f"ONNX file, {MODEL_HELP}")
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="photo, path or URL")
    add_json(parser)
    parser.add_argument(
        "--top", type=int, default=3, metavar="N", help="labels per photo in JSON (default: 3)"
    )


def run_command(arguments: argparse.Namespace) -> None:
    """Print the predictions. Exits with 1 if a photo could not be predicted.

    Raises:
        PetsError: An argument is out of range, or the model cannot be used.
    """
    if arguments.top < 1:
        raise PetsError(f"--top = {arguments.top}: must be at least 1")
    from pets.model import find_model
    from pets_core.inference.predict import Photo, open_model, read_photo

    model = open_model(find_model(arguments.model).url)
    photos = (Photo(photo, partial(read_photo, photo)) for photo in arguments.photos)
    predictions = list(model.predict(photos, arguments.top))
    if arguments.json:
        print_json([p.model_dump(exclude_none=True) for p in predictions])
    for prediction in predictions:
        if prediction.error:
            print(without_queries(f"{prediction.photo}: {prediction.error}"), file=sys.stderr)
        elif not arguments.json:
            print(f"{prediction.photo}  {prediction.text}")
    if any(prediction.error for prediction in predictions):
        sys.exit(1)
