"""Frozen records of how a model of tags did."""

from __future__ import annotations

from typing import Literal

from pets_core.records.base import Record
from pets_core.records.evaluation import Share, SplitReport, unseen_text

__all__ = ["TagMeasures", "TagsReport"]


class TagMeasures(Record):
    """How one tag did; what has no photos to be told from is None.

    Attributes:
        name: The tag.
        support: Photos of the split that have it.
        average_precision: Area below the curve of precision over recall, whatever the threshold.
        precision: Share of the photos given the tag that have it.
        recall: Share of the photos that have it that were given it.
        f1: Harmonic mean of both.
        threshold: How probable it must be to be given.
    """

    name: str
    support: int
    average_precision: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    threshold: float


class TagsReport(SplitReport):
    """How a model of tags did on one split.

    Attributes:
        num_untagged: Photos of them that have no tag.
        mean_average_precision: Over the tags that photos have (mAP); None where none has any.
        micro_f1: F1 over all pairs of a photo and a tag.
        macro_f1: Mean of the F1 of each tag that photos have.
        accuracy_multi: Share of the pairs of a photo and a tag that are right.
        exact_match: Share of the photos that were given all of their tags and no other.
        loss: Mean binary cross-entropy, nats.
        threshold_kind: One threshold for all tags, or one for each.
        num_validation: Validation photos that the thresholds were chosen on; 0: they are one half.
        has_curve: Whether validation photos of this run tell what each threshold comes to.
        tags: Of each tag, in index order.
    """

    num_untagged: int
    mean_average_precision: float | None
    micro_f1: Share
    macro_f1: float
    accuracy_multi: float
    exact_match: float
    loss: float
    threshold_kind: Literal["shared", "per_tag"]
    num_validation: int
    has_curve: bool = True
    tags: tuple[TagMeasures, ...]

    @property
    def headline(self) -> str:
        """How the model did, as people say it first."""
        mean = self.mean_average_precision
        return f"F1 {self.micro_f1.value:.1%}" + ("" if mean is None else f", mAP {mean:.1%}")

    @property
    def threshold_text(self) -> str:
        """What thresholds there are and where they come from."""
        if not self.num_validation:
            return "0.5 for each tag, for there were no validation photos to choose them on"
        chosen = f"chosen on {self.num_validation:,} validation photos"
        if self.threshold_kind == "per_tag":
            return f"one for each tag, {chosen}"
        return f"{self.tags[0].threshold:.2f} for all tags, {chosen}"

    @property
    def details(self) -> tuple[str, ...]:
        """The figures behind the headline, a sentence each."""
        f1 = self.micro_f1
        return (
            f"Micro F1 {f1.value:.1%} (95% interval {f1.low:.1%} to {f1.high:.1%}), macro F1 "
            f"{self.macro_f1:.1%}.",
            f"{self.exact_match:.1%} of the photos were given all of their tags and no other; "
            f"{self.accuracy_multi:.2%} of all pairs of a photo and a tag are right "
            "(accuracy_multi).",
            f"Thresholds: {self.threshold_text}.",
        )

    @property
    def cautions(self) -> tuple[str, ...]:
        """What is to be known before anybody relies on the model; often nothing."""
        cautions = []
        if self.split == "valid":
            cautions.append(
                "There are no test photos: what is chosen by these looks better than it is"
            )
        if unseen := unseen_text([tag.name for tag in self.tags if not tag.support]):
            cautions.append(f"Tags {unseen}.")
        return (*cautions, *self.training_cautions)
