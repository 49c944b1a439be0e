"""`pets similar`: find the photos of a data set that are most similar to a given photo."""

from __future__ import annotations

import argparse

from pets.cli.tables import add_json, print_json, print_table
from pets_core.embeddings.similar import find_similar_photos
from pets_core.errors import PetsError

__all__ = ["add_arguments", "run_command"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets similar` to its parser."""
    parser.add_argument("photo", metavar="PHOTO", help="photo, path or URL")
    parser.add_argument(
        "--embeddings", required=True, metavar="FILE",
        help="embeddings.parquet of `pets embed` or its run folder, path or URL",
    )  # fmt: skip
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="photos to list (default: 5)"
    )
    add_json(parser)


def run_command(arguments: argparse.Namespace) -> None:
    """Print the most similar photos, most similar first.

    Raises:
        PetsError: An argument is out of range, or a file cannot be used.
    """
    if arguments.top < 1:
        raise PetsError(f"--top = {arguments.top}: must be at least 1")
    found = find_similar_photos(arguments.photo, arguments.embeddings, arguments.top)
    if arguments.json:
        print_json([photo._asdict() for photo in found])
        return
    rows = [(f"{n.similarity:.3f}", n.target_text, n.split, n.id) for n in found]
    print_table(["cosine", "target", "split", "id"], rows)
