"""Task that mirrors evaluated runs and aliases on an MLflow server."""

from __future__ import annotations

from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.ratings.config import RatingsConfig
from pets_core.records.evaluation import EvalReport
from pets_core.registry.aliases import load_candidate
from pets_core.runtime.mlflow_mirror import MlflowMirror

__all__ = ["mirror_run"]


def mirror_run(config: PipelineConfig | RatingsConfig, report: EvalReport) -> None:
    """Mirror the run and its alias if `registry.mlflow_uri` is set. Call it in a flow.

    If that fails, the task run is Failed, and the flow run goes on.
    """
    if config.registry.mlflow_uri:
        _mirror(config, report, return_state=True)


@task(name="mlflow", cache_policy=NO_CACHE)
def _mirror(config: PipelineConfig | RatingsConfig, report: EvalReport) -> State[None] | None:
    uri = config.registry.mlflow_uri
    assert uri is not None
    try:
        mirror = MlflowMirror(uri, config.store)
        page = mirror.add_evaluation(report.url.rsplit("/", 1)[0])
        mirror.move_alias(load_candidate(report).dataset_name, config.gate.alias)
    except Exception as error:  # noqa: BLE001 - the evaluation is complete, whatever fails here
        reason = storage.without_secrets(str(error))
        return Failed(
            message=f"run and alias are not completely mirrored: {reason}. The next evaluation "
            "mirrors the alias, and pets run --resume this run"
        )
    get_run_logger().info("MLflow: %s", page)
    return None
