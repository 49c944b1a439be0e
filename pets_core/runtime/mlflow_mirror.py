"""Mirror of evaluated runs and aliases on an MLflow tracking server."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pets_core import storage
from pets_core.errors import PetsError, TransferError, safe_cause
from pets_core.records.training import TrainResult
from pets_core.registry.aliases import Candidate, absolute, current, load_candidate
from pets_core.runtime.run_list import load_report, load_run_summary, run_stages
from pets_core.runtime.runs import flatten_settings, is_run, load_run_settings
from pets_core.storage.layout import EVALUATION, REPORT, RUNS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, ModelVersion, Param, Run

    from pets_core.records.evaluation import EvalReport

__all__ = ["MlflowMirror", "check_mlflow"]

_ID_TAG = "pets.run_id"
_MODEL = "model"
_FORBIDDEN = re.compile(r"[^\w/.\- :]")
"""Characters that MLflow does not accept in names of metrics."""
_ALIAS = re.compile(r"(?!latest$)(?![vV][0-9]+$)[A-Za-z0-9_-]+")
"""Names that MLflow accepts for aliases."""
_MAX_PARAMS = 100
_MAX_METRICS = 1000
_MAX_PARAM_TEXT = 6000
_MAX_TAG_TEXT = 5000
"""MLflow's limits of a request, and of the text of a parameter and of a tag."""
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Defaults of the client, which otherwise would try for minutes and print to standard output."""


def check_mlflow(uri: str | None, alias: str) -> None:
    """Check client and alias if a mirror is set.

    Args:
        uri: Address of the server; None: no mirror.
        alias: Alias to mirror.

    Raises:
        PetsError: The client is not installed, or MLflow does not accept the alias.
    """
    if uri is None:
        return
    if find_spec("mlflow") is None:
        raise PetsError(
            f"registry.mlflow_uri = {uri}: its package is not installed; run "
            "pip install 'pets-pipeline[mlflow]'"
        )
    if not _ALIAS.fullmatch(alias):
        raise PetsError(
            f"{alias}: MLflow does not accept this name of an alias: use letters, digits, _ and -, "
            "and neither latest nor v1; or remove registry.mlflow_uri"
        )


class MlflowMirror:
    """Client of an MLflow server that mirrors evaluations and aliases of a store.

    Calls are idempotent: existing runs and versions of models are not changed.

    Args:
        uri: Address of the server. The client must be installed (`check_mlflow`).
        store: URL of the store.
    """

    def __init__(self, uri: str, store: str) -> None:
        self._uri = uri
        self._store = store

    @cached_property
    def _client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def add_evaluation(self, url: str) -> str:
        """Mirror an evaluated run: settings, metrics, tags and report.

        The experiment has the name of the data set.

        Args:
            url: Folder of the run.

        Returns:
            Address of the run's page.

        Raises:
            PetsError: The run is not evaluated.
            TransferError: The server is unreachable or refused the run.
        """
        with self._session():
            info = self._ensure_run(url).info
        return f"{self._uri}/#/experiments/{info.experiment_id}/runs/{info.run_id}"

    def move_alias(self, dataset: str, alias: str) -> str | None:
        """Point the alias of the registered model at the model of the store's alias.

        The registered model has the name of the data set. A model becomes a version of it, with its
        files, when the alias points at it for the first time.

        Args:
            dataset: Name of the data set.
            alias: Name of the alias.

        Returns:
            Number of the version; None if the store has no such alias.

        Raises:
            PetsError: The run of the model is not in the store.
            TransferError: The server is unreachable or refused the model.
        """
        version = current(self._store, dataset, alias)
        if version is None:
            return None
        url = storage.join(storage.absolute(self._store), RUNS, version.model.run_id)
        with self._session():
            registered = self._ensure_version(self._ensure_run(url), version.model)
            self._client.set_registered_model_alias(dataset, alias, registered.version)
        return str(registered.version)

    def _ensure_run(self, url: str) -> Run:
        """Return the MLflow run of an evaluated run, which is created if necessary."""
        report = load_report(url)
        if report is None:
            raise PetsError(f"{url}: there is no evaluation in this folder")
        # The store may have moved since the evaluation.
        report = report.model_copy(update={"url": storage.join(url, EVALUATION)})
        model = load_candidate(report)
        experiment = self._ensure_experiment(model.dataset_name)
        query = f"tags.`{_ID_TAG}` = '{model.run_id}'"
        found = self._client.search_runs([experiment], query, order_by=["attributes.status"])
        run = found[0] if found else self._create_run(experiment, url, report, model)
        # Another process may be writing it, or was interrupted: equal values are stored once.
        if run.info.status != "FINISHED":
            self._fill_run(run.info.run_id, url, report, model)
        return run

    def _create_run(self, experiment: str, url: str, report: EvalReport, model: Candidate) -> Run:
        summary = load_run_summary(url)
        tags = {
            _ID_TAG: model.run_id,
            "pets.run_url": url,
            "pets.model_url": absolute(self._store, model.model_url),
            "pets.dataset_fingerprint": model.dataset_fingerprint,
            "pets.split": model.split,
            "pets.gate": report.verdict.summary,
            "mlflow.note.content": summary.notes if summary else "",
        } | {f"pets.tag.{tag}": "true" for tag in (summary.tags if summary else ())}
        return self._client.create_run(
            experiment,
            start_time=_milliseconds((summary and summary.created_at) or model.evaluated_at),
            tags={name: _text(value)[:_MAX_TAG_TEXT] for name, value in tags.items()},
            run_name=summary.name if summary else model.run_id,
        )

    def _fill_run(self, run_id: str, url: str, report: EvalReport, model: Candidate) -> None:
        evaluated_at = _milliseconds(model.evaluated_at)
        params = _params(load_run_settings(url)) if is_run(url) else []
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])
        training = run_stages(url, report.model_url).get("train")
        metrics = _metrics(
            report, training if isinstance(training, TrainResult) else None, evaluated_at
        )
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])
        self._upload(run_id, report.file(REPORT))
        # Written last: a run that is not finished is mirrored again.
        self._client.set_terminated(run_id, end_time=evaluated_at)

    def _ensure_version(self, run: Run, model: Candidate) -> ModelVersion:
        """Return the version of the registered model, which is created if necessary."""
        name = model.dataset_name
        run_id = run.info.run_id
        found = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if found:
            return found[0]
        self._upload(run_id, absolute(self._store, model.model_url), _MODEL)
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        return self._client.create_model_version(
            name,
            f"{run.info.artifact_uri}/{_MODEL}",
            run_id,
            tags={_ID_TAG: model.run_id, "pets.backbone": model.backbone},
            description=f"{model.metric.name} {model.metric.format()}",
        )

    def _ensure_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _upload(self, run_id: str, url: str, folder: str | None = None) -> None:
        """Upload a file, or the files of a folder into a folder of the run's artifacts."""
        fs, path = storage.filesystem(url)
        with TemporaryDirectory(prefix="pets-mlflow-") as local:
            fs.get(path.rstrip("/") + ("/" if folder else ""), f"{local}/", recursive=bool(folder))
            self._client.log_artifacts(run_id, local, folder)

    @contextmanager
    def _session(self) -> Iterator[None]:
        """Set the client's variables, and raise its errors as `TransferError`."""
        added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
        os.environ.update(added)
        # It logs each retry; the error has the reason.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        try:
            from mlflow.exceptions import MlflowException
            from requests.exceptions import RequestException

            try:
                yield
            except (MlflowException, RequestException) as error:
                raise TransferError(f"{self._uri}: MLflow: {_reason(error)}") from safe_cause(error)
        finally:
            for name in added:
                os.environ.pop(name, None)


def _reason(error: Exception) -> str:
    """Return the first line of an error, or that the server is unreachable."""
    text = str(error) or type(error).__name__
    if "Max retries exceeded" in text:
        return "the server is unreachable"
    return _text(text.splitlines()[0])[:300]


def _milliseconds(time_text: str) -> int:
    return int(datetime.fromisoformat(time_text).timestamp() * 1000)


def _params(settings: dict[str, Any]) -> list[Param]:
    """Return the settings of a run as parameters, such as train.epochs."""
    from mlflow.entities import Param

    return [
        Param(name, _text(value)[:_MAX_PARAM_TEXT])
        for name, value in flatten_settings(settings).items()
        if value not in (None, "") and not name.startswith(("run.", "registry."))
    ]


def _text(value: object) -> str:
    """Return a value as text, without queries and passwords of URLs."""
    text = value if isinstance(value, str) else json.dumps(value)
    return storage.without_secrets(text)


def _metrics(report: EvalReport, training: TrainResult | None, milliseconds: int) -> list[Metric]:
    """Return the metrics of evaluation and baselines, and those of each epoch by its number.

    Args:
        report: Evaluation.
        training: Training of the model, if the run has one.
        milliseconds: Time of the metrics, which is the same in a repetition.
    """
    from mlflow.entities import Metric

    values = [(metric.name, metric.value, 0) for metric in (report.primary, *report.metrics)]
    values += [(f"baseline/{each.name}", each.metric.value, 0) for each in report.baselines]
    for epoch in training.epochs if training else ():
        if epoch.epoch < 0:
            continue
        values.append(("train/loss", epoch.train_loss, epoch.epoch))
        if epoch.valid_loss is not None:
            values.append(("valid/loss", epoch.valid_loss, epoch.epoch))
        if epoch.valid_metric is not None:
            values.append((f"valid/{epoch.metric.name}", epoch.valid_metric, epoch.epoch))
    return [
        Metric(_FORBIDDEN.sub("_", name), value, milliseconds, step)
        for name, value, step in values
        if math.isfinite(value)
    ]
