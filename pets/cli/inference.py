"""`pets predict`, `pets export` and `pets recommend`: use a stored model, without Prefect."""

from __future__ import annotations

import argparse
import json
import sys

from pets_core.errors import PetsError, without_queries

__all__ = ["export", "predict", "recommend"]


def predict(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Run `pets predict`. Exits with 1 if a photo could not be predicted."""
    parser.add_argument("model", metavar="MODEL", help="model folder or ONNX file, path or URL")
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="photo, path or URL")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.add_argument(
        "--top", type=int, default=3, metavar="N", help="labels per photo in JSON (default: 3)"
    )
    parsed = parser.parse_args(arguments)
    if parsed.top < 1:
        raise PetsError(f"--top = {parsed.top}: must be at least 1")
    from pets_core.inference.predict import predict_photos

    predictions = list(predict_photos(parsed.model, parsed.photos, num_top=parsed.top))
    if parsed.json:
        print(json.dumps([p.model_dump(exclude_none=True) for p in predictions], indent=2))
    for prediction in predictions:
        if prediction.error:
            print(without_queries(f"{prediction.photo}: {prediction.error}"), file=sys.stderr)
        elif not parsed.json:
            print(f"{prediction.photo}  {prediction.text}")
    if any(prediction.error for prediction in predictions):
        sys.exit(1)


def export(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Run `pets export`."""
    parser.add_argument("model", metavar="MODEL", help="model folder, path or URL")
    parser.add_argument("--to", required=True, metavar="FILE.onnx", help="path or URL to write")
    parsed = parser.parse_args(arguments)
    from pets_core.inference.onnx import export_onnx

    difference = export_onnx(parsed.model, parsed.to)
    print(f"{parsed.to}  largest difference from PyTorch {difference:.1e}")


def recommend(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Run `pets recommend`."""
    parser.add_argument("model", metavar="MODEL", help="folder of a recommender, path or URL")
    parser.add_argument("--user", help="user id (default: an unknown user)")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="items (default: 10)")
    parser.add_argument(
        "--min-ratings", type=int, default=5, metavar="N",
        help="skip items with fewer training ratings (default: 5)",
    )  # fmt: skip
    parsed = parser.parse_args(arguments)
    if parsed.top < 1:
        raise PetsError(f"--top = {parsed.top}: must be at least 1")
    from pets_core.ratings.recommend import recommend as find_items

    for found in find_items(parsed.model, parsed.user, parsed.top, parsed.min_ratings):
        print(f"{found.rating:6.2f}  {found.title}  ({found.item}, {found.num_ratings} ratings)")
