"""A trained model as one ONNX file, from stored photos to probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.models.card import ONNX_KEY, ONNX_THRESHOLDS, read_card
from pets_core.models.folding import fold
from pets_core.models.package import TrainedModel, load_model
from pets_core.targets.registry import get_target

__all__ = ["TOLERANCE", "export_onnx"]

TOLERANCE = 1e-4
"""Largest difference of a probability between torch and onnxruntime, both in fp32; of a number, in
its standard deviations where these are above 1."""
_OPSET = 20
_BATCH = 4


class _Deployed(nn.Module):
    """Photos as they are stored, uint8 (B, R, R, 3), to predictions, (B, D)."""

    def __init__(self, built: TrainedModel) -> None:
        super().__init__()
        self._card, self._crop = built.card, built.card.center_crop()
        size = built.card.image_size
        self.body = fold(built.model.body, torch.zeros(1, 3, size, size))
        self.head = built.model.head

    def forward(self, photos: Tensor) -> Tensor:
        """Crop, normalise, predict."""
        return get_target(self._card.targets).decode(
            self._card, self.head(self.body(self._crop(photos)))
        )


def export_onnx(model_url: str, url: str) -> float:
    """Write a model as ONNX, once onnxruntime has been seen to compute the same.

    The file takes photos stretched to a square of `resize_to` pixels, uint8 (B, R, R, 3), and holds
    the model's card, so that it needs nothing beside it.

    Args:
        model_url: A model folder.
        url: File to write.

    Returns:
        The largest difference of a prediction, on photos of noise.

    Raises:
        PetsError: There is no such model, the extra `onnx` is not installed, the backbone cannot be
            exported, or onnxruntime computes something else. Nothing is then written.
    """
    if not url.endswith(".onnx"):
        raise PetsError(f"--to {url}: the name of an ONNX file ends with .onnx")
    read_card(model_url)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so in another way
    except ImportError as error:
        raise PetsError(
            f"{error.name} is not installed: pip install 'pets-pipeline[onnx]'"
        ) from error
    built = load_model(model_url)
    deployed = _Deployed(built).eval()
    side = built.card.resize_to
    noise = np.random.default_rng(0).integers(0, 256, (_BATCH, side, side, 3), np.uint8)
    data = _exported(deployed, built, torch.from_numpy(noise))
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"photos": noise})
    except Exception as error:  # onnxruntime has a class for each fault, with no base of its own
        reason = str(error).splitlines()[0]
        raise PetsError(f"{model_url}: onnxruntime cannot run it as ONNX: {reason}") from error
    with torch.no_grad():
        # The model as it was judged, not the copy that was exported.
        inputs = built.card.center_crop()(torch.from_numpy(noise))
        expected = (
            get_target(built.card.targets)
            .decode(built.card, built.model.head(built.model.body(inputs)))
            .numpy()
        )
    # Numbers may be large, probabilities and places are not.
    scale = np.maximum(1.0, [info.std for info in built.card.numbers] or 1.0)
    difference = float((np.abs(found - expected) / scale).max())
    if not difference <= TOLERANCE:
        raise PetsError(
            f"{model_url}: onnxruntime's predictions differ from torch's by {difference:.1e}, "
            f"more than {TOLERANCE:.0e}: use the model folder"
        )
    storage.write_bytes(storage.absolute(url), data, "--to")
    return difference


def _exported(deployed: nn.Module, built: TrainedModel, photos: Tensor) -> bytes:
    try:
        program: Any = torch.onnx.export(
            deployed,
            (photos,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["photos"],
            output_names=["probabilities"],
            opset_version=_OPSET,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).splitlines()[0]
        raise PetsError(f"{built.card.backbone} cannot be exported to ONNX: {reason}") from error
    proto = program.model_proto
    about = {ONNX_KEY: built.card.model_dump_json()}
    target = get_target(built.card.targets)
    if decision := target.read_decision(built.card, built.url):
        about[ONNX_THRESHOLDS] = decision.model_dump_json()
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    data: bytes = proto.SerializeToString()
    return data
