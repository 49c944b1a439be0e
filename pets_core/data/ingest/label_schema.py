"""Label contract of a data set: columns, and labels with their indices, over all versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from pets_core import storage
from pets_core.data.dataset import SCHEMA_VERSION, schema_of
from pets_core.errors import PetsError
from pets_core.records.base import parse_record, renamed
from pets_core.records.dataset import ClassInfo, NumberInfo
from pets_core.storage.layout import CONTRACTS

__all__ = ["Contract", "load_contract", "reconcile", "save_contract"]


class Contract(BaseModel):
    """One version of the contract; a label keeps its index in all later versions."""

    model_config = ConfigDict(frozen=True)

    version: int
    schema_version: int
    columns: dict[str, str]
    vocabulary: tuple[ClassInfo, ...] = renamed("vocabulary", "classes")
    targets: str = "class"
    numbers: tuple[NumberInfo, ...] = ()

    @classmethod
    def of(
        cls,
        version: int,
        vocabulary: tuple[ClassInfo, ...],
        targets: str = "class",
        numbers: tuple[NumberInfo, ...] = (),
    ) -> Contract:
        """Return a contract with the current schema and these labels or numbers."""
        return cls(
            version=version,
            schema_version=SCHEMA_VERSION,
            columns={field.name: str(field.type) for field in schema_of(targets)},
            vocabulary=vocabulary,
            targets=targets,
            numbers=numbers,
        )


def load_contract(root: str) -> Contract | None:
    """Read the newest contract of the data set in folder `root`; None before the first commit.

    Raises:
        PetsError: The contract is damaged.
    """
    folder = storage.join(root, CONTRACTS)
    names = [name for name in storage.list_folder(folder) if name.endswith(".json")]
    if not names:
        return None
    url = storage.join(folder, max(names))
    return parse_record(Contract, storage.read_bytes(url), f"the contract {url} is damaged")


def reconcile(
    known: Contract | None,
    vocabulary: Mapping[str, str | None],
    *,
    extend: bool,
    targets: str = "class",
    numbers: Sequence[NumberInfo] = (),
) -> tuple[Contract, list[str]]:
    """Return the contract for these labels or numbers, and the labels outside it.

    Args:
        known: The newest contract; None: these labels form the first.
        vocabulary: Species (or None) by label, in the source's order.
        extend: Whether to append new labels to the contract.
        targets: Kind of target.
        numbers: Target numbers, in order.

    Raises:
        PetsError: A label has changed its species, or the target differs from earlier versions.
    """
    if known is None:
        infos = tuple(ClassInfo(name=n, species=s) for n, s in vocabulary.items())
        return Contract.of(1, infos, targets, tuple(numbers)), []
    if (known.targets, known.numbers) != (targets, tuple(numbers)):
        raise PetsError(
            f"{_describe(targets, numbers)}, but earlier versions of the data set have "
            f"{_describe(known.targets, known.numbers)}: set source.name to start a new data set"
        )
    have = {info.name: info.species for info in known.vocabulary}
    if changed := [n for n, s in vocabulary.items() if n in have and have[n] != s]:
        raise PetsError(
            f"label {changed[0]!r} has species {vocabulary[changed[0]]}, in earlier versions "
            f"{have[changed[0]]}: correct the source, or set source.name to start a new data set"
        )
    new = [name for name in vocabulary if name not in have]
    if extend and new:
        added = tuple(ClassInfo(name=n, species=vocabulary[n]) for n in new)
        return Contract.of(known.version + 1, known.vocabulary + added, targets, known.numbers), []
    if known.schema_version != SCHEMA_VERSION:
        return Contract.of(known.version + 1, known.vocabulary, targets, known.numbers), new
    return known, new


def _describe(targets: str, numbers: Sequence[NumberInfo]) -> str:
    names = ", ".join(info.text for info in numbers)
    return f"source.targets = {targets}{f' of {names}' if names else ''}"


def save_contract(root: str, contract: Contract) -> None:
    """Store a contract unless its version exists.

    Raises:
        PetsError: A concurrent ingest has stored a different contract of this version.
    """
    url = storage.join(root, CONTRACTS, f"{contract.version:05d}.json")
    if not storage.exists(url):
        storage.write_bytes(url, contract.model_dump_json(indent=2).encode())
    # Read back: another process may have written at the same time.
    if Contract.model_validate_json(storage.read_bytes(url)) != contract:
        raise PetsError(
            f"a concurrent ingest has stored version {contract.version} of the label contract: "
            "ingest again"
        )
