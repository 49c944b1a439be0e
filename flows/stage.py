"""One stage of another flow run, on the machine of this one."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from tasks.stages import do_stage

__all__ = ["stage_flow"]


# Not "pets-...", which the automation that picks up crashed runs looks for: the run that asked for
# the stage asks again.
@flow(name="rank-stage")
def stage_flow(request_url: str, require_gpu: bool = False) -> None:
    """Find a learning rate, train or predict, as `request_url` in the store asks for.

    Flow runs whose `launch.deployment` names a deployment of this flow start it. With `require_gpu`
    it refuses to work on a machine without a GPU.
    """
    do_stage(request_url, require_gpu)
