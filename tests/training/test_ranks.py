"""Several CPU ranks take the same steps as one process, for any shares of the batch."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pets_core.runtime.fork_server import ForkServer

HELPERS = Path(__file__).parents[1] / "helpers"
TIMEOUT = 100  # seconds; ranks that wait for each other give up after 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks"),
]

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    running = ForkServer("training_ranks:run", os.environ | {"PYTHONPATH": str(HELPERS)})
    yield running
    running.close()


@pytest.fixture
def run(server) -> Run:
    """Run a scenario of `helpers/training_ranks.py` and return the result of rank 0."""

    def run_ranks(num_ranks: int, scenario: str, kind: str = "") -> dict[str, Any]:
        job = server.start([str(num_ranks), scenario, kind])
        code = job.wait(TIMEOUT)
        with job.stdout as output:
            lines = output.read().splitlines()
        assert code == 0, "\n".join(lines[-30:])
        (result,) = [line for line in lines if line.startswith("RESULT ")]
        return json.loads(result.removeprefix("RESULT "))

    return run_ranks


def assert_close(one: dict[str, Any], other: dict[str, Any], rel: float = 1e-4) -> None:
    for name in ("losses", "norms", "weights"):
        assert one[name] == pytest.approx(other[name], rel=rel), name


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_unequal_shares_take_the_same_steps(run, kind):
    """Ranks with different numbers of passes would wait for each other."""
    assert_close(run(3, "unequal_parts", kind), run(1, "unequal_parts", "whole"))


def test_layers_with_collectives_run_on_all_ranks_in_every_pass(run):
    assert run(3, "unequal_parts", "communicating")["norms"][0] > 0


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_rank_without_samples_takes_the_same_steps(run, kind):
    """As in Swin transformers, the body of this model refuses an empty batch."""
    assert_close(run(3, "empty_share", kind), run(1, "empty_share", "whole"))


def test_mixed_precision_matches_with_and_without_sharding(run):
    whole, sharded = run(2, "precision", "whole"), run(2, "precision", "sharded")
    assert_close(sharded, whole, rel=1e-3)
    fp32 = run(1, "unequal_parts", "whole")
    assert whole["losses"][:2] != pytest.approx(fp32["losses"], rel=1e-6), "nothing is bf16"


def test_out_of_memory_on_one_rank_halves_the_micro_batch_on_all(run):
    found = run(2, "search", "whole")
    assert found["micro_batch_size"] == 2
    assert min(found["norms"]) > 0


def test_sharded_model_has_no_micro_batch_search(run):
    assert (
        "launch.shard_model = true needs train.micro_batch_size"
        in run(2, "search", "sharded")["error"]
    )


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_ranks_validate_with_the_same_batch_norm_statistics(run, ema_decay):
    found = run(2, "statistics", str(ema_decay))
    assert found["statistics_differ"] == 0
    assert found["valid_loss"] == pytest.approx(found["by_each"], rel=1e-5)


def test_step_communicates_only_gradients(run):
    assert run(2, "communication") == {"collectives": ["c10d::allreduce_"]}


def test_rank_0_writes_the_full_checkpoint_of_a_sharded_model(run):
    whole, sharded = run(1, "checkpoint", "whole"), run(2, "checkpoint", "sharded")
    assert sharded["sums"] == pytest.approx(whole["sums"], rel=1e-3)
    assert sharded["counts"] == [len(whole["sums"]), 0]
    assert sharded["best"] == whole["best"] > 0


def test_rank_0_gets_all_rows_in_order(run):
    assert run(3, "rows") == {"equal": True, "main": True}
