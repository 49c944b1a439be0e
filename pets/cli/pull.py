"""`pets pull`: download a model that `pets push` uploaded."""

from __future__ import annotations

import argparse

from pets.cli.tables import add_json, print_json

__all__ = ["add_arguments", "run_command"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets pull` to its parser."""
    parser.add_argument(
        "source", metavar="hf://ORG/NAME[@REVISION]",
        help="repository, and a branch, tag or commit (default: the newest commit)",
    )  # fmt: skip
    parser.add_argument("--to", metavar="FOLDER", help="folder to create (default: ./NAME)")
    add_json(parser)


def run_command(arguments: argparse.Namespace) -> None:
    """Download the model, and print its folder.

    Raises:
        PetsError: The folder exists, or there is no such repository, revision or model.
    """
    from pets_core.hub.address import parse_address

    address = parse_address(arguments.source)
    from pets_core.hub.models import pull_model

    pulled = pull_model(address, arguments.to or address.repo_id.partition("/")[2])
    if arguments.json:
        print_json(pulled)
        return
    print(f"{pulled.url}  commit {pulled.commit}")
