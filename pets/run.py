"""Train from Python, and look at the results of runs."""

from __future__ import annotations

import io
from functools import cached_property
from html import escape
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from pets.model import Model
from pets.store import resolve_store
from pets_core import storage
from pets_core.errors import PetsError
from pets_core.records.evaluation import EvalReport
from pets_core.records.training import LRSuggestion
from pets_core.runtime.run_list import load_report
from pets_core.storage.layout import RUNS, TRAINING_PLOT

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from pets_core.config.pipeline import PipelineConfig
    from pets_core.records.comparison import RunComparison
    from pets_core.runtime.run_list import RunSummary

__all__ = ["LRSearch", "Run", "find_lr", "fine_tune"]


def fine_tune(source: str | PathLike[str] | None = None, /, **settings: Any) -> Run:
    """Run the whole pipeline: ingest, find a learning rate, train, evaluate.

    The flow run is recorded by the configured Prefect server, or else by a temporary one.

    Args:
        source: Folder, archive or table of photos, path or URL; None: the built-in sample.
        settings: Groups of settings as in a YAML file, such as `train={"epochs": 3}` or
            `run={"name": "first"}`, and `store` (docs/settings.md).

    Returns:
        The run. If `gate.promote` is set and the model does not pass the gate,
        `run.report.verdict` has the reasons.

    Raises:
        PetsError: A setting or the source is invalid.
    """
    report = _run_flow("pipeline:pipeline", _config(source, settings))
    return Run(report.url.rsplit("/", 1)[0])


def find_lr(source: str | PathLike[str] | None = None, /, **settings: Any) -> LRSearch:
    """Run the learning-rate range test (Smith 2015) without training.

    Args:
        source: As for `fine_tune`.
        settings: As for `fine_tune`.

    Raises:
        PetsError: A setting or the source is invalid.
    """
    return LRSearch(_run_flow("lr_find:lr_find_flow", _config(source, settings)))


def _config(source: str | PathLike[str] | None, settings: dict[str, Any]) -> PipelineConfig:
    from pydantic import ValidationError

    from pets.cli.settings import format_errors
    from pets_core.config.pipeline import PipelineConfig

    groups = {"store": resolve_store(None)} | settings
    if source is not None:
        own = dict(groups.get("source") or {})
        if "url" in own:
            raise PetsError("source is given twice: remove url from the settings of the source")
        groups["source"] = own | {"url": fspath(source)}
    try:
        return PipelineConfig.model_validate(groups)
    except ValidationError as error:
        raise PetsError(format_errors(error)) from None


def _run_flow(flow: str, config: PipelineConfig) -> Any:
    """Run a flow and return its result, also of a run that ended as Rejected."""
    from pkgutil import resolve_name

    from pets.cli.flow_start import set_prefect_defaults

    set_prefect_defaults()
    from prefect import tags

    with tags(*config.run.tags):
        state = resolve_name(f"flows.{flow}")(config=config, return_state=True)
    # Notebooks have a running event loop, in which Prefect would return a coroutine.
    result = state.result(raise_on_failure=False, _sync=True)
    if isinstance(result, BaseException):
        raise result
    return result


class Run:
    """A run of the pipeline.

    Args:
        run: Folder of the run; or `latest`, its id, a start of it, or its name.
        store: Store of the run. Default: the variable PETS_STORE, or `pets-store`.

    Attributes:
        url: Folder of the run.
    """

    def __init__(self, run: str | PathLike[str], *, store: str | None = None) -> None:
        from pets_core.runtime.run_list import find_run_folder

        self.url = find_run_folder(resolve_store(store), fspath(run))

    def __repr__(self) -> str:
        return f"Run({self.url!r})"

    def _repr_html_(self) -> str | None:
        """Return the metrics as a table, which notebooks display; None if there are none."""
        try:
            report = self.report
        except PetsError:
            return None
        metrics = [report.primary, *report.metrics]
        rows = "".join(
            f"<tr><td>{escape(m.name)}</td><td>{escape(m.format())}</td>"
            f"<td>{escape(m.interval_text)}</td></tr>"
            for m in metrics
        )
        return f"<table><caption>{escape(report.samples_text)}</caption>{rows}</table>"

    @property
    def summary(self) -> RunSummary:
        """Name, tags, state, data set, metric and cost.

        Raises:
            PetsError: There is no run in the folder.
        """
        from pets_core.runtime.run_list import load_run_summary

        found = load_run_summary(self.url)
        if found is None:
            raise PetsError(f"{self.url}: there is no run in this folder")
        return found

    @cached_property
    def report(self) -> EvalReport:
        """The evaluation.

        Raises:
            PetsError: The run is not evaluated.
        """
        found = load_report(self.url)
        if found is None:
            raise PetsError(f"{self.url}: the run has no evaluation of this version")
        return found

    @property
    def metrics(self) -> dict[str, float]:
        """Values of all metrics by name, the primary metric first."""
        return {metric.name: metric.value for metric in (self.report.primary, *self.report.metrics)}

    @property
    def model(self) -> Model:
        """The trained model."""
        return Model(self.report.model_url)

    def predictions(self) -> pd.DataFrame:
        """Return the predictions of the evaluated photos, one row each."""
        return _read_frame(self.report.predictions_url)

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of the evaluation, such as `classes`, `confusion` or `tags`.

        Raises:
            PetsError: The evaluation has no such table.
        """
        known = [each.table for each in self.report.sections if each.table]
        if name not in known:
            raise PetsError(f"{name}: no such table. Use one of {', '.join(known)}")
        return _read_frame(self.report.file(f"{name}.parquet"))

    def most_confused(self, min_count: int = 1) -> pd.DataFrame:
        """Return the pairs of actual and predicted class that are confused most, as fastai does.

        Args:
            min_count: Minimum number of photos of a pair.
        """
        frame = self.table("most_confused")
        return frame[frame["count"] >= min_count].reset_index(drop=True)

    def plot_confusion(self) -> Image.Image:
        """Return the confusion matrix as an image."""
        return _read_image(self.report.file("confusion.png"))

    def plot_training(self) -> Image.Image:
        """Return losses, validation metric and learning rates as an image."""
        return _read_image(storage.join(self.url, TRAINING_PLOT))

    def compare(self, *others: Run | str) -> RunComparison:
        """Compare other runs with this one on the same samples.

        Args:
            others: Runs, or what `Run` accepts, in the store of this run.

        Raises:
            PetsError: A run is not evaluated, or given twice.
        """
        from pets_core.runtime.run_compare import compare_runs

        store = self.url.rpartition(f"/{RUNS}/")[0]
        runs = [run if isinstance(run, Run) else Run(run, store=store) for run in others]
        return compare_runs(store, [self.url, *(run.url for run in runs)])


class LRSearch:
    """Result of a learning-rate range test.

    Attributes:
        record: Suggestions and files.
    """

    def __init__(self, record: LRSuggestion) -> None:
        self.record = record

    def __repr__(self) -> str:
        return f"LRSearch({self.suggestion:.2e}, {self.record.suggestion})"

    @property
    def suggestion(self) -> float:
        """The chosen learning rate."""
        return self.record.chosen

    @property
    def suggestions(self) -> dict[str, float]:
        """All suggested learning rates by name: minimum, steepest, valley, slide, limited."""
        return self.record.rates

    def curve(self) -> pd.DataFrame:
        """Return learning rate and loss of each step."""
        return _read_frame(self.record.curve_url)

    def plot(self) -> Image.Image:
        """Return the curve with the suggestions as an image."""
        return _read_image(self.record.plot_url)


def _read_frame(url: str) -> pd.DataFrame:
    from pets_core.data.dataset import read_table

    frame: pd.DataFrame = read_table(url).to_pandas()
    return frame


def _read_image(url: str) -> Image.Image:
    from PIL import Image

    image = Image.open(io.BytesIO(storage.read_bytes(url)))
    image.load()
    return image
