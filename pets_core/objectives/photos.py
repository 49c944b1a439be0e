"""The objective of each kind of target that a photo has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pets_core.config.train import TrainConfig
from pets_core.data.loading.loader import move_places
from pets_core.data.loading.transforms import REACH
from pets_core.models.card import ModelCard
from pets_core.objectives.multi_label import MultiLabel
from pets_core.objectives.objective import Objective
from pets_core.objectives.regression import Boxes, Keypoints, Regression, widened
from pets_core.objectives.single_label import SingleLabel, balanced_weights

__all__ = ["photo_objective", "tell"]


def photo_objective(
    card: ModelCard, config: TrainConfig, class_counts: Sequence[int], device: torch.device
) -> Objective:
    """What a model of photos is trained for, and what makes predictions of its logits.

    Args:
        card: What the model tells.
        config: Loss, smoothing, class weights.
        class_counts: Training photos of each class, where these are to be balanced.
        device: Of the logits.
    """
    if card.targets == "class":
        weights = None
        if config.class_weights == "balanced":
            weights = balanced_weights(class_counts).to(device)
        return SingleLabel(config.label_smoothing, weights)
    if card.targets == "tags":
        return MultiLabel(config.label_smoothing)
    if card.targets == "points":
        return Keypoints(REACH, loss=config.number_loss)
    if card.targets == "box":
        return Boxes(REACH, loss=config.number_loss)
    return Regression(
        widened(card.y_range) if card.y_range else None,
        loss=config.number_loss,
        mean=torch.tensor([info.mean for info in card.numbers], device=device),
        std=torch.tensor([info.std for info in card.numbers], device=device),
        unit=card.numbers[0].unit,
        alike=len(card.numbers) == 1 or len({info.unit or info.name for info in card.numbers}) == 1,
    )


def tell(card: ModelCard, logits: Tensor, maps: Tensor | None = None) -> Tensor:
    """What a model tells of photos.

    Args:
        card: Of the model.
        logits: (B, D).
        maps: Where it tells places, what takes those on its inputs to those on the photos,
            (B, 3, 3); None: it saw the middle of them.

    Returns:
        (B, D): probabilities of classes, which sum to 1, or of tags; numbers; or places on the
        photos, from -1 to 1.
    """
    objective = photo_objective(card, TrainConfig(), (), logits.device)
    told = objective.activation(logits)
    if maps is not None:
        return move_places(told, maps, card.targets).clamp(-1, 1)
    if card.targets == "box":
        # As `move_box` has it of a box that is moved: corners in order.
        one, other = told.chunk(2, 1)
        told = torch.cat([torch.minimum(one, other), torch.maximum(one, other)], 1)
    if card.targets in ("points", "box"):
        # By hand, for onnxruntime does not run the export of `move_box`.
        side, size = card.resize_to, card.image_size
        centre = (2 * ((side - size) // 2) + size) / side - 1
        return (told * (size / side) + centre).clamp(-1, 1)
    return told.clamp(*card.y_range) if card.y_range else told
