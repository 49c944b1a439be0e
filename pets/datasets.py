"""Open stored data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pets.store import resolve_store
from pets_core.data.dataset import read_photo_tables, schema_of
from pets_core.data.versions import find_version, list_versions
from pets_core.errors import PetsError
from pets_core.records.base import Resize, Split
from pets_core.records.dataset import DatasetManifest

if TYPE_CHECKING:
    import pandas as pd

    from pets_core.data.loading.photos import PhotoDataset

__all__ = ["Dataset", "open", "versions"]


def open(name: str, *, store: str | None = None) -> Dataset:
    """Open a version of a data set.

    Args:
        name: Name of a data set (its newest version), or the start of a version's fingerprint.
        store: Store of the data set. Default: the variable PETS_STORE, or `pets-store`.

    Raises:
        PetsError: There is no such version, or several.
    """
    return Dataset(find_version(resolve_store(store), name))


def versions(name: str | None = None, *, store: str | None = None) -> list[DatasetManifest]:
    """Return the versions of a data set, or of all data sets, oldest first.

    Args:
        name: Name of the data set; None: all.
        store: Store of the data sets. Default: the variable PETS_STORE, or `pets-store`.
    """
    return list_versions(resolve_store(store), name)


class Dataset:
    """A version of a data set.

    Attributes:
        manifest: Splits, shards, vocabulary and origin of the version.
    """

    def __init__(self, manifest: DatasetManifest) -> None:
        self.manifest = manifest

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {info.num_rows}" for name, info in self._splits().items())
        return f"Dataset({self.manifest.name!r}, {self.manifest.fingerprint}: {splits})"

    def __len__(self) -> int:
        return self.manifest.num_rows

    def _splits(self) -> dict[Split, Any]:
        return {name: info for name, info in self.manifest.splits.items() if info.num_rows}

    def files(self, split: Split) -> list[str]:
        """Return the URLs of the Parquet files of a split.

        Raises:
            PetsError: The data set has no such split.
        """
        if split not in self._splits():
            raise PetsError(f"{split}: no such split. Use one of {', '.join(self._splits())}")
        return self.manifest.files(split)

    def to_pandas(
        self, split: Split | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Return the photos as a table, one row each.

        Args:
            split: Split to read; None: all.
            columns: Columns to read; None: all except `image`, the encoded photo.

        Raises:
            PetsError: There is no such split or column, or a file is damaged.
        """
        urls = [url for name in ([split] if split else self._splits()) for url in self.files(name)]
        known = schema_of(self.manifest.targets).names
        wanted = [name for name in known if name != "image"] if columns is None else list(columns)
        if unknown := [name for name in wanted if name not in known]:
            raise PetsError(f"{unknown[0]}: no such column. Use some of {', '.join(known)}")
        frame: pd.DataFrame = read_photo_tables(urls, wanted).to_pandas()
        return frame

    def to_torch(
        self, split: Split = "train", *, size: int = 224, resize: Resize = "squish"
    ) -> PhotoDataset:
        """Return a split as a map-style `torch.utils.data.Dataset`.

        Its elements are a photo, uint8 (3, size, size), and the target: a class index, or the flags
        of the tags or the numbers, float32. It keeps the encoded photos in memory.

        Args:
            split: Split to read.
            size: Side of the square photos, pixels.
            resize: How a photo becomes a square.
        """
        from pets_core.data.loading.photos import PhotoDataset

        return PhotoDataset(self.manifest, self.files(split), size, resize)

    def to_hf(self, split: Split | None = None) -> Any:
        """Return a split as a `Dataset` of Hugging Face, or all splits as a `DatasetDict`.

        Raises:
            PetsError: The package `datasets` is not installed.
        """
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise PetsError("to_hf needs the package datasets: pip install datasets") from error
        names = [split] if split else list(self._splits())
        files = {name: self.files(name) for name in names}
        return load_dataset("parquet", data_files=files, split=split)
