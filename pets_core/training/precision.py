"""Which mixed precision a setting means on a device."""

from __future__ import annotations

from typing import Literal

import torch

from pets_core.errors import PetsError

__all__ = ["resolve_precision"]


def resolve_precision(
    wanted: Literal["auto", "no", "bf16", "fp16"], device: torch.device
) -> Literal["no", "bf16", "fp16"]:
    """Return the precision to use; auto takes bf16 only where hardware multiplies it faster.

    On CPUs that is AMX. With AVX-512 BF16 alone fp32 is twice as fast (docs/performance.md).

    Raises:
        PetsError: fp16 was asked for on a CPU, which cannot train in it.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise PetsError(
            "train.mixed_precision = fp16 needs a GPU, and this machine has none: set auto, bf16 "
            "or no"
        )
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") else "no"
