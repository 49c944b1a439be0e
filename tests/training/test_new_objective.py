"""docs/new-objective.md: its example runs and learns."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

PAGE = (Path(__file__).parents[2] / "docs/new-objective.md").read_text()
MAX_LINES = 60


class Batch(NamedTuple):
    inputs: torch.Tensor
    targets: torch.Tensor
    ids: list[str]
    global_size: int


class Samples:
    """Points graded 0 to 4 by their position along a line."""

    def __init__(self, rows: range) -> None:
        inputs = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))[list(rows)]
        positions = inputs @ torch.tensor([1.0, -1.0, 0.5, 0.0])
        grades = torch.bucketize(positions, torch.tensor([-1.5, -0.5, 0.5, 1.5]))
        parts = zip(inputs.split(32), grades.split(32), strict=True)
        self._batches = [Batch(*part, ["?"] * len(part[0]), len(part[0])) for part in parts]
        self.num_rows, self.num_batches = len(rows), len(self._batches)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        yield from self._batches[first:]


def test_documented_objective_learns(capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(code.splitlines()) < MAX_LINES
    names: dict[str, object] = {"Samples": Samples}
    torch.manual_seed(0)
    exec(compile(code, "new-objective.md", "exec"), names)
    epochs = names["history"].epochs
    assert epochs[-1].metric.name == "mean grades off"
    assert epochs[-1].valid_metric < 0.3 < epochs[0].valid_metric
    assert capsys.readouterr().out.split()[-3:] == ["mean", "grades", "off"]
    # By hand: grades 2 and 0 of 4, predicted as 3 and 0.
    objective = names["Ordinal"]()
    logits = torch.tensor([[1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]])
    assert objective.activation(logits).tolist() == [3, 0]
    assert objective.metric_sum(logits, torch.tensor([2, 0])).item() == 1
