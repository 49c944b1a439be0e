"""Records the convolutions and batch norms that torch computes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Convolutions"]


class Convolutions(TorchDispatchMode):
    """Records (direction, whether depthwise, dtype) of convolutions, and counts batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool, torch.dtype]] = []
        self.num_norms = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        if name == "convolution":
            self.seen.append(("forward", args[8] > 1, args[0].dtype))
        elif name == "convolution_backward":
            self.seen.append(("backward", args[9] > 1, args[0].dtype))
        self.num_norms += "batch_norm" in name and "backward" not in name
        return func(*args, **(kwargs or {}))
