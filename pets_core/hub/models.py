"""Push a model folder to the Hub, and pull it back."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import pydantic
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, field_validator

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.hub.address import HubAddress
from pets_core.hub.client import PulledModel, Pushed, commit, connect, explain_hub_errors
from pets_core.hub.model_card import model_page
from pets_core.hub.page import README
from pets_core.hub.timm_form import CONFIG, HEAD, merge_weights, write_timm_form
from pets_core.models.card import CARD, WEIGHTS, weights_sha256
from pets_core.models.package import load_model

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["HUB_RECORD", "pull_model", "pull_model_once", "push_model"]

HUB_RECORD = "pets.json"
"""File in a repository that marks it as a pushed model, with the checksums of the model folder."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FOLDER_FILE = re.compile(r"[\w-]+\.json")


class _HubRecord(BaseModel):
    """Contents of pets.json.

    Attributes:
        weights_sha256: Checksum of the weights of the model folder.
        files: Checksums of the other files that prediction needs, by name.
    """

    model_config = ConfigDict(frozen=True)

    format_version: Literal[1] = 1
    weights_sha256: str
    files: dict[str, str]

    @field_validator("files")
    @classmethod
    def _check_names(cls, files: dict[str, str]) -> dict[str, str]:
        """Reject names that are paths, so that a pull writes into its folder only."""
        if CARD not in files or not all(map(_FOLDER_FILE.fullmatch, files)):
            raise ValueError(f"must be names of JSON files, one of them {CARD}")
        return files


def push_model(
    model_url: str, address: HubAddress, *, private: bool = False, license_id: str | None = None
) -> Pushed:
    """Push a model folder in one commit.

    Args:
        model_url: Model folder.
        address: Repository.
        private: Whether a new repository is private.
        license_id: Licence of the model, as the Hub names it.

    Raises:
        PetsError: There is no model, no token or no permission, or timm would build another model.
        TransferError: The Hub is unreachable, or the upload was interrupted.
    """
    _check_kind(address)
    if address.revision:
        raise PetsError(
            f"{address}: a push writes to the default branch: remove @{address.revision}"
        )
    api = connect("write")
    built = load_model(model_url)
    with TemporaryDirectory(prefix="pets-push-") as name:
        folder = Path(name)
        write_timm_form(built, folder)
        checksum = weights_sha256(built.url)
        merged = merge_weights((folder / WEIGHTS).read_bytes(), (folder / HEAD).read_bytes())
        if sha256(merged).hexdigest() != checksum:
            raise PetsError(
                f"{built.url}/{WEIGHTS} was written in another form than this version writes, and "
                "could not be pulled again: train the model again, or push it with the version "
                "that trained it"
            )
        files: dict[str, Path | bytes] = {each: folder / each for each in (WEIGHTS, CONFIG, HEAD)}
        own = {
            each: storage.read_bytes(storage.join(built.url, each))
            for each in storage.list_folder(built.url)
            if _FOLDER_FILE.fullmatch(each) and each not in (CONFIG, HUB_RECORD)
        }
        record = _HubRecord(
            weights_sha256=checksum,
            files={each: sha256(data).hexdigest() for each, data in own.items()},
        )
        own[HUB_RECORD] = record.model_dump_json(indent=2).encode()
        own[README] = model_page(built.url, built.card, address, license_id).encode()
        return commit(api, address, files | own, "Push a model with pets", private=private)


def pull_model(address: HubAddress, folder: str) -> PulledModel:
    """Download a pushed model into a new folder; a failed download leaves no folder.

    Raises:
        PetsError: The folder exists, or the repository holds no such model or a damaged one.
        TransferError: The Hub is unreachable, or the download was interrupted.
    """
    _check_kind(address)
    target = Path(storage.absolute(folder))
    if target.exists():
        raise PetsError(f"{target} exists: remove it, or set --to to a new folder")
    api = connect("read")
    return _download(api, address, _find(api, address), target)


def pull_model_once(address: HubAddress, cache_dir: str) -> PulledModel:
    """Download a pushed model into the cache, or find the same commit there; errors as above."""
    _check_kind(address)
    repository = Path(storage.absolute(cache_dir)) / "hub" / address.repo_id.replace("/", "--")
    revision = address.revision or ""
    if _COMMIT.fullmatch(revision) and (repository / revision).exists():
        return PulledModel(url=str(repository / revision), commit=revision)
    api = connect("read")
    info = _find(api, address)
    target = repository / str(info.sha)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if target.exists():
            return PulledModel(url=str(target), commit=str(info.sha))
        return _download(api, address, info, target)


def _check_kind(address: HubAddress) -> None:
    if address.kind != "model":
        raise PetsError(
            f"{address} is a data set. Use hf://org/name for a model; open a data set with "
            "datasets.load_dataset"
        )


def _find(api: HfApi, address: HubAddress) -> ModelInfo:
    """Return the commit and the files of a repository."""
    with explain_hub_errors(address, "read"):
        return api.model_info(address.repo_id, revision=address.revision)


def _download(api: HfApi, address: HubAddress, info: ModelInfo, target: Path) -> PulledModel:
    found = {each.rfilename for each in info.siblings or ()}
    if missing := [each for each in (HUB_RECORD, CARD, WEIGHTS, HEAD) if each not in found]:
        raise PetsError(
            f"{address} holds no {missing[0]}: pull downloads models that `pets push` wrote"
        )

    def read(name: str) -> bytes:
        with explain_hub_errors(address, "read"):
            path = api.hf_hub_download(address.repo_id, name, revision=info.sha)
            return Path(path).read_bytes()

    try:
        record = _HubRecord.model_validate_json(read(HUB_RECORD))
    except pydantic.ValidationError as error:
        raise PetsError(f"{address}: {HUB_RECORD} is damaged or of a later version") from error
    contents = {name: read(name) for name in record.files}
    checksums = dict(record.files)
    contents[WEIGHTS] = _merge(address, read(WEIGHTS), read(HEAD))
    checksums[WEIGHTS] = record.weights_sha256
    for name, expected in checksums.items():
        if sha256(contents[name]).hexdigest() != expected:
            raise PetsError(
                f"{address}: {name} fails its checksum: it was changed since `pets push`. Push the "
                "model again, or name an earlier commit (@revision)"
            )
    if README in found:
        contents[README] = read(README)
    _write(target, contents)
    return PulledModel(url=str(target), commit=str(info.sha))


def _merge(address: HubAddress, body: bytes, head: bytes) -> bytes:
    try:
        return merge_weights(body, head)
    except Exception as error:  # safetensors' errors have no common base class
        raise PetsError(f"{address}: {WEIGHTS} or {HEAD} is damaged") from error


def _write(target: Path, contents: dict[str, bytes]) -> None:
    """Write files to a new folder, which appears when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        partial = Path(name) / "model"
        partial.mkdir()
        for file, data in contents.items():
            (partial / file).write_bytes(data)
        partial.rename(target)
