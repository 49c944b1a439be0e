"""`pets push`: upload a model or a data set to the Hugging Face Hub."""

from __future__ import annotations

import argparse

from pets.cli.store_actions import MODEL_HELP, add_store
from pets.cli.tables import add_json, print_json

__all__ = ["add_arguments", "run_command"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets push` to its parser."""
    parser.add_argument(
        "source", metavar="MODEL|DATASET",
        help=f"{MODEL_HELP}; for hf://datasets/..., name of a data set or start of a version's "
        "fingerprint",
    )  # fmt: skip
    parser.add_argument(
        "target", metavar="hf://ORG/NAME", help="repository: hf://org/name, hf://datasets/org/name"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--license", metavar="ID", help="licence in the card, as the Hub names it, such as mit"
    )
    add_store(parser)
    add_json(parser)


def run_command(arguments: argparse.Namespace) -> None:
    """Push, and print the repository and its commit.

    Raises:
        PetsError: There is no such model or data set, no token, no repository or no permission.
    """
    from pets_core.hub.address import parse_address
    from pets_core.hub.client import connect

    address = parse_address(arguments.target)
    connect("write")
    options = {"private": arguments.private, "license_id": arguments.license}
    if address.kind == "dataset":
        from pets_core.data.versions import find_version
        from pets_core.hub.datasets import push_dataset

        manifest = find_version(arguments.store, arguments.source)
        pushed = push_dataset(manifest, address, **options)
    else:
        from pets.model import find_model
        from pets_core.hub.models import push_model

        url = find_model(arguments.source, store=arguments.store).url
        pushed = push_model(url, address, **options)
    if arguments.json:
        print_json(pushed)
        return
    print(f"{pushed.url}  {len(pushed.files)} files, commit {pushed.commit}")
