"""Execution of one stage of another flow run."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import flow

from tasks.stages import run_requested_stage

__all__ = ["stage_flow"]


# Not named "pets-...": the automation that restarts crashed runs must not match stages, which the
# requesting run submits again.
@flow(name="rank-stage")
def stage_flow(request_url: str, require_gpu: bool = False) -> None:
    """Run a stage (learning-rate search, training or prediction) requested by another flow run.

    Flow runs whose `launch.deployment` names a deployment of this flow start it.

    Args:
        request_url: Request in the store.
        require_gpu: Fail on a machine without a GPU.
    """
    run_requested_stage(request_url, require_gpu)
