"""Artifacts of an evaluation, for review in the Prefect UI before promotion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from pets_core.evaluation.gallery import Gallery, Picture, read_gallery
from pets_core.evaluation.tables import read_frame
from pets_core.records.evaluation import Comparison, EvalReport, Section
from pets_core.registry.aliases import GatedConfig
from pets_core.storage.layout import GALLERY, REPORT
from pets_core.storage.markdown import escape_markdown
from tasks.artifacts.publisher import (
    Publisher,
    jpeg,
    photo,
    stored_png,
    table,
    truncated,
)

__all__ = ["publish_evaluation"]


@task(name="publish evaluation", cache_policy=NO_CACHE)
def publish_evaluation(config: GatedConfig, report: EvalReport) -> None:
    """Publish one artifact per section, then `champion` and `run-summary`.

    `run-summary` is created last, so that the UI lists it first.
    """
    gallery = read_gallery(report.file(GALLERY))
    with Publisher(report.url) as publisher:
        for section in report.sections:
            if section.table:
                rows = _rows(report, section)
                full_url = report.file(f"{section.table}.csv")
                publisher.table(section.key, rows, section.description, full_url)
            else:
                publisher.markdown(
                    section.key, _page(report, section, gallery), section.description
                )
        if report.comparison:
            compared = _comparison(report.comparison, report.samples)
            description = f"Comparison with the champion on the same {report.samples}"
            publisher.markdown("champion", compared, description)
        publisher.markdown("run-summary", _summary(config, report), "Evaluation summary")


def _rows(report: EvalReport, section: Section) -> list[dict[str, Any]]:
    """Return the rows of a table, floats rounded to four digits and missing values empty."""
    frame = read_frame(report.file(section.table or ""))
    return [
        {str(name): _cell(value, name in section.percent) for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _cell(value: Any, is_fraction: bool) -> Any:
    if value is None or value != value:
        return ""
    if not isinstance(value, float):
        return value
    return round(value, 4) if is_fraction else float(f"{value:.4g}")


def _page(report: EvalReport, section: Section, gallery: Gallery) -> str:
    head = f"# {escape_markdown(section.title)}\n\n"
    head += f"{escape_markdown(section.text)}\n\n" if section.text else ""
    if section.figure:
        url = report.file(f"{section.figure}.png")
        head += f"{stored_png(url, section.figure_alt)}\n\nFull size: `{url}`\n\n"
    return truncated(head, _pictures(gallery.get(section.gallery or "", ())))


def _pictures(pictures: Sequence[Picture]) -> Iterator[str]:
    for group, members in groupby(pictures, key=lambda picture: picture.group):
        if group:
            photos = " ".join(photo(picture.jpeg) for picture in members)
            yield f"**{escape_markdown(group)}**\n\n{photos}\n\n"
            continue
        ungrouped = list(members)
        has_maps = any(picture.map_jpeg for picture in ungrouped)
        maps = ["activation map"] if has_maps else []
        yield table(["photo", *maps, "actual", "predicted", ""], []) + "\n"
        for picture in ungrouped:
            activation = jpeg(picture.map_jpeg, "activation map") if picture.map_jpeg else ""
            cells = [
                f"{photo(picture.jpeg)} {escape_markdown(picture.photo_id)}",
                *([activation] if has_maps else []),
                *map(escape_markdown, (picture.actual, picture.predicted, picture.detail)),
            ]
            yield f"| {' | '.join(cells)} |\n"


def _comparison(compared: Comparison, samples: str) -> str:
    own, champion, gained = compared.metric, compared.champion_metric, compared.improvement
    changes = table(
        ["class", "recall", "champion recall", samples],
        ([escape_markdown(c.name), f"{c.recall:.1%}", f"{c.champion_recall:.1%}", c.support]
         for c in (*compared.worse[:5], *compared.better[:5])),
    )  # fmt: skip
    figures = table(
        ["", ""],
        [
            [own.name, escape_markdown(own.format(digits=2))],
            ["champion", escape_markdown(champion.format(digits=2))],
            ["improvement", escape_markdown(own.format_change(gained.value))],
            ["95% interval", escape_markdown(compared.interval_text)],
            [compared.test, compared.p_text],
            [f"{samples} with a better score than the champion", compared.num_better],
            [f"{samples} with a worse score", compared.num_worse],
        ],
    )
    listed = (
        f"Largest drops and gains:\n\n{changes}\n\n" if compared.worse or compared.better else ""
    )
    return (
        f"# Against the champion: {escape_markdown(compared.delta_text)}\n\nOn the same "
        f"{compared.num_rows} {samples}. {compared.excluded_text}\n\n{figures}\n\n{listed}"
        f"Champion: `{compared.champion_url}`\n"
    )


def _summary(config: GatedConfig, report: EvalReport) -> str:
    primary = report.primary
    metrics = table(
        ["metric", "value", "95% interval", "baseline"],
        (
            [escape_markdown(m.name), escape_markdown(m.format()),
             escape_markdown(m.interval_text.removeprefix("95% interval ")),
             "" if m.baseline is None else escape_markdown(m.format(m.baseline))]
            for m in (primary, *report.metrics)
        ),
    )  # fmt: skip
    worst = ""
    if report.highlights and report.highlights.rows:
        rows = ([escape_markdown(cell) for cell in row] for row in report.highlights.rows)
        worst = f"{report.highlights.title}:\n\n{table(report.highlights.columns, rows)}\n\n"
    links = table(
        ["", ""],
        [
            ["model", f"`{report.model_url}`"],
            ["report (single page)", f"`{report.file(REPORT)}`"],
            ["predictions", f"`{report.predictions_url}`"],
            ["tables and figures", f"`{report.url}`"],
        ],
    )
    details = escape_markdown(" ".join(report.details))
    return (
        f"# {escape_markdown(_headline(report))}: {_verdict(config, report)}\n\n{_remarks(report)}"
        f"{report.samples_text}. {details}\n\n{metrics}\n\n"
        f"{worst}{links}\n"
    )


def _headline(report: EvalReport) -> str:
    name = report.primary.name
    return f"{name[:1].upper()}{name[1:]} {report.primary.format()}"


def _verdict(config: GatedConfig, report: EvalReport) -> str:
    if config.gate.promote and report.verdict.passed:
        return f"passes the gate, promoted to {config.gate.alias}"
    return report.verdict.text


def _remarks(report: EvalReport) -> str:
    """Return a paragraph for each gate reason and warning, and one for the champion."""
    lines = [escape_markdown(f"Baselines: {report.baselines_text}.")] if report.baselines else []
    lines += [f"**{escape_markdown(reason)}**" for reason in report.verdict.reasons]
    lines += [f"**{escape_markdown(warning)}**" for warning in report.warnings]
    if report.comparison:
        compared = report.comparison
        champion = compared.champion_metric.format()
        lines.append(
            escape_markdown(
                f"Champion: {champion} on the same {report.samples}; this model is "
                f"{compared.delta_text} ({compared.p_text}). {compared.excluded_text}".rstrip()
            )
        )
    elif report.is_champion:
        lines.append("It is the champion.")
    elif not report.comparison_error:
        lines.append("There is no champion to compare with.")
    return "".join(f"{line}\n\n" for line in lines)
