"""Connection to the Hub: token, commits, and errors that name the remedy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from pets_core.errors import (
    PetsError,
    TransferError,
    disk_error_reason,
    iterate_causes,
    safe_cause,
)
from pets_core.hub.address import HubAddress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["PulledModel", "Pushed", "commit", "connect", "explain_hub_errors"]

Access = Literal["read", "write"]

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404
_INVALID = (400, 422)
_HTTP_CLIENTS = frozenset({"httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"})
"""Libraries whose errors are those of a connection; the version of huggingface_hub decides."""


class Pushed(BaseModel):
    """A commit on the Hub.

    Attributes:
        url: Address of the repository.
        commit: Hash of the commit.
        files: Files of the commit, by path in the repository.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    commit: str
    files: tuple[str, ...]


class PulledModel(BaseModel):
    """A downloaded model.

    Attributes:
        url: Model folder.
        commit: Hash of the commit on the Hub.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    commit: str


def connect(access: Access) -> HfApi:
    """Return a client with the token of HF_TOKEN or of the stored login.

    Raises:
        PetsError: Writing needs a token, and there is none.
    """
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if access == "write" and not token:
        raise PetsError(
            "no token for the Hub: set HF_TOKEN to a token with write permission, or log in with "
            "hf auth login"
        )
    return HfApi(token=token, library_name="pets-pipeline")


def commit(
    api: HfApi,
    address: HubAddress,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    private: bool = False,
    stale: Collection[str] = (),
) -> Pushed:
    """Upload files in one commit; create the repository if it does not exist.

    Without the last request the repository stays as it was.

    Args:
        api: Client with a token.
        address: Repository.
        files: Contents by path in the repository.
        message: Message of the commit.
        private: Whether a new repository is private.
        stale: Folders of the repository from which other files are removed.

    Raises:
        PetsError: The token or its permissions do not suffice, or the repository is public and
            `private` is set.
        TransferError: The Hub is unreachable, or the upload was interrupted.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repo_id, kind = address.repo_id, address.kind
    with explain_hub_errors(address, "write"):
        api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id, repo_type=kind).private:
            raise PetsError(
                f"{address} exists and is public: make it private on the Hub, or remove --private"
            )
        found = api.list_repo_files(repo_id, repo_type=kind) if stale else []
        old = [name for name in found if name.startswith(tuple(stale)) and name not in files]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(name) for name in old
        ]
        operations += [CommitOperationAdd(name, _content(files[name])) for name in sorted(files)]
        done = api.create_commit(repo_id, operations, commit_message=message, repo_type=kind)
    return Pushed(url=str(address), commit=done.oid, files=tuple(sorted(files)))


def _content(file: Path | bytes) -> str | bytes:
    return file if isinstance(file, bytes) else str(file)


@contextmanager
def explain_hub_errors(address: HubAddress, access: Access) -> Iterator[None]:
    """Raise any error of the block as a `PetsError` of one line, without URLs and tokens.

    Raises:
        PetsError: The token, the repository or the revision is not valid, or the disk is full.
        TransferError: Any other error.
    """
    try:
        yield
    except PetsError:
        raise
    except Exception as error:  # noqa: BLE001 - the client raises any type; it is re-raised
        raise _to_pets_error(address, access, error) from safe_cause(error)


def _to_pets_error(address: HubAddress, access: Access, error: Exception) -> PetsError:
    from huggingface_hub.errors import (
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(iterate_causes(error))
    status = next((code for cause in causes if (code := _status(cause))), None)
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return PetsError(f"{address}: the repository has no such revision")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes) or status == _NOT_FOUND:
        return PetsError(
            f"{address}: no such repository or file, or it is private and HF_TOKEN may not read it"
        )
    if status == _UNAUTHORIZED:
        return PetsError(f"{address}: the Hub rejects the token. Set HF_TOKEN to a valid token")
    if status == _FORBIDDEN:
        return PetsError(
            f"{address}: the token has no {access} permission there. Set HF_TOKEN to one that has"
        )
    if reason := disk_error_reason(error):
        return PetsError(f"{address}: a file cannot be written: {reason}")
    if status in _INVALID:
        reason = " ".join(str(error).split())
        return PetsError(f"{address}: the Hub refuses the files: {reason}")
    kept = " Nothing was committed: run the command again" if access == "write" else ""
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return TransferError(f"{address}: HF_HUB_OFFLINE is set: unset it")
    if status:
        return TransferError(f"{address}: the Hub failed (HTTP {status}).{kept}")
    if any(_is_connection_error(cause) for cause in causes):
        return TransferError(
            f"{address}: the connection to the Hub failed ({type(causes[-1]).__name__}): check the "
            f"network and HF_ENDPOINT.{kept}"
        )
    first = str(error).strip().splitlines()
    detail = f"{type(error).__name__}{f': {first[0]}' if first else ''}"
    return TransferError(f"{address}: {detail}.{kept}")


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_connection_error(error: BaseException) -> bool:
    is_http = type(error).__module__.partition(".")[0] in _HTTP_CLIENTS
    return is_http or isinstance(error, (ConnectionError, TimeoutError))
