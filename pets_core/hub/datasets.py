"""Push a version of a data set to the Hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pets_core import storage
from pets_core.data.dataset import read_shard
from pets_core.errors import PetsError
from pets_core.hub.address import HubAddress
from pets_core.hub.client import Pushed, commit, connect
from pets_core.hub.page import README, format_page
from pets_core.records.dataset import DatasetManifest
from pets_core.records.target_spec import target_spec
from pets_core.storage.markdown import escape_markdown

__all__ = ["push_dataset"]

_FOLDER = "data/"
_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
"""The Hub's name of each split."""
_USE = """
```python
from datasets import load_dataset

data = load_dataset("{repo_id}")
```
"""


def push_dataset(
    manifest: DatasetManifest,
    address: HubAddress,
    *,
    private: bool = False,
    license_id: str | None = None,
) -> Pushed:
    """Push the shards of a version in one commit, which replaces an earlier version.

    `datasets.load_dataset` finds splits and features; shards are checked before the upload.

    Args:
        manifest: Version of the data set.
        address: Repository.
        private: Whether a new repository is private.
        license_id: Licence of the data set, as the Hub names it.

    Raises:
        PetsError: A shard is damaged, or there is no token or no permission.
        TransferError: The Hub is unreachable, or the upload was interrupted.
    """
    if address.kind != "dataset" or address.revision:
        raise PetsError(f"{address}: push a data set to hf://datasets/org/name")
    api = connect("write")
    with TemporaryDirectory(prefix="pets-push-") as folder:
        files: dict[str, Path | bytes] = {}
        patterns: dict[str, str] = {}
        for split, info in manifest.splits.items():
            if not info.num_rows:
                continue
            name = _SPLITS[split]
            patterns[name] = f"{_FOLDER}{name}-*"
            for number, shard in enumerate(info.shards):
                path = f"{_FOLDER}{name}-{number:05}-of-{len(info.shards):05}.parquet"
                data, url = read_shard(manifest, shard), manifest.shard_url(shard)
                files[path] = _local_file(url, data, Path(folder) / path.rpartition("/")[2])
        files[README] = _page(manifest, address, patterns, license_id).encode()
        message = f"Push version {manifest.fingerprint} with pets"
        return commit(api, address, files, message, private=private, stale=(_FOLDER,))


def _local_file(url: str, data: bytes, copy: Path) -> Path:
    """Return the path of a local shard, or of a copy of a remote one."""
    if not storage.is_url(url):
        return Path(url)
    copy.write_bytes(data)
    return copy


def _page(
    manifest: DatasetManifest,
    address: HubAddress,
    patterns: dict[str, str],
    license_id: str | None,
) -> str:
    """Return the card of a data set, with the files of each split.

    Args:
        manifest: Version of the data set.
        address: Repository.
        patterns: Pattern of the files of each split, by the Hub's name of the split.
        license_id: Licence, as the Hub names it; None: the field is omitted.
    """
    files = [{"split": split, "path": path} for split, path in patterns.items()]
    metadata: dict[str, Any] = {
        "tags": ["pets-pipeline"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    if target_spec(manifest.targets).is_label:
        metadata["task_categories"] = ["image-classification"]
    if license_id:
        metadata["license"] = license_id
    lines = [
        f"# {escape_markdown(manifest.name)}\n",
        f"Version `{manifest.fingerprint}`: {escape_markdown(manifest.contents)}.\n",
        "| split | photos |\n|---|---|",
        *(f"| {split} | {info.num_rows} |" for split, info in manifest.splits.items()),
    ]
    return format_page(metadata, "\n".join(lines) + "\n" + _USE.format(repo_id=address.repo_id))
