"""`pets recommend`: list the items with the highest predicted ratings for a user."""

from __future__ import annotations

import argparse

from pets.cli.store_actions import MODEL_HELP
from pets.cli.tables import add_json, print_json
from pets_core.errors import PetsError

__all__ = ["add_arguments", "run_command"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets recommend` to its parser."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--user", help="user id (default: an unknown user)")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="items (default: 10)")
    parser.add_argument(
        "--min-ratings", type=int, default=5, metavar="N",
        help="skip items with fewer training ratings (default: 5)",
    )  # fmt: skip
    add_json(parser)


def run_command(arguments: argparse.Namespace) -> None:
    """Print the items, highest predicted rating first.

    Raises:
        PetsError: An argument is out of range, or the model cannot be used.
    """
    if arguments.top < 1:
        raise PetsError(f"--top = {arguments.top}: must be at least 1")
    from pets.model import find_model
    from pets_core.ratings.recommend import Recommender

    model = Recommender(find_model(arguments.model).url)
    found = model.recommend(arguments.user, arguments.top, arguments.min_ratings)
    if arguments.json:
        print_json([item._asdict() for item in found])
        return
    for item in found:
        print(f"{item.rating:6.2f}  {item.title}  ({item.item}, {item.num_ratings} ratings)")
