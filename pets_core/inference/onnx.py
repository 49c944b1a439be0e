"""Export of a trained model to ONNX, from decoded photos to predictions."""

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
"""Largest difference of a probability between torch and onnxruntime, both in fp32. Differences of
numbers are divided by their standard deviation if that is above 1."""
_OPSET = 20
_BATCH = 4


class _ExportedModel(nn.Module):
    """Model from decoded photos, uint8 (B, R, R, 3), to predictions, (B, D)."""

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
    """Export a model to ONNX and write it if onnxruntime's predictions agree with torch's.

    The input is photos resized to a square of `resize_to` pixels by the card's `resize`, uint8
    (B, R, R, 3). The file contains the model's card and needs no other file.

    Args:
        model_url: Model folder.
        url: File to write.

    Returns:
        Largest difference of a prediction, measured on random noise.

    Raises:
        PetsError: There is no such model, the extra `onnx` is not installed, the backbone cannot be
            exported, or onnxruntime's predictions differ. No file is written then.
    """
    if not url.endswith(".onnx"):
        raise PetsError(f"--to {url}: the file name must end with .onnx")
    read_card(model_url)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it, and its own error is unclear
    except ImportError as error:
        raise PetsError(
            f"{error.name} is not installed; run pip install 'pets-pipeline[onnx]'"
        ) from error
    built = load_model(model_url)
    exported = _ExportedModel(built).eval()
    side = built.card.resize_to
    noise = np.random.default_rng(0).integers(0, 256, (_BATCH, side, side, 3), np.uint8)
    data = _export(exported, built, torch.from_numpy(noise))
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"photos": noise})
    except Exception as error:  # onnxruntime's errors have no common base class
        reason = str(error).splitlines()[0]
        raise PetsError(f"{model_url}: onnxruntime cannot run the ONNX model: {reason}") from error
    with torch.no_grad():
        # The model that was evaluated, not the folded copy that was exported.
        inputs = built.card.center_crop()(torch.from_numpy(noise))
        expected = (
            get_target(built.card.targets)
            .decode(built.card, built.model.head(built.model.body(inputs)))
            .numpy()
        )
    # Numbers may be large, unlike probabilities and coordinates.
    scale = np.maximum(1.0, [info.std for info in built.card.numbers] or 1.0)
    difference = float((np.abs(found - expected) / scale).max())
    if not difference <= TOLERANCE:
        raise PetsError(
            f"{model_url}: onnxruntime's predictions differ from torch's by {difference:.1e}, "
            f"more than {TOLERANCE:.0e}: use the model folder"
        )
    storage.write_bytes(storage.absolute(url), data, "--to")
    return difference


def _export(exported: nn.Module, built: TrainedModel, photos: Tensor) -> bytes:
    try:
        program: Any = torch.onnx.export(
            exported,
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
    metadata = {ONNX_KEY: built.card.model_dump_json()}
    target = get_target(built.card.targets)
    if decision := target.read_decision(built.card, built.url):
        metadata[ONNX_THRESHOLDS] = decision.model_dump_json()
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    data: bytes = proto.SerializeToString()
    return data
