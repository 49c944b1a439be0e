"""Artifacts are bounded and escaped, and a server error does not fail the run."""

import base64
import io
import json
import logging
import re

import httpx
import pytest
from PIL import Image

from pets_core.evaluation.gallery import Picture
from pets_core.storage.markdown import escape_markdown
from tasks.artifacts import publisher as publisher_module
from tasks.artifacts.evaluation import _pictures
from tasks.artifacts.publisher import MAX_BYTES, Publisher, stored_png, truncated


@pytest.fixture
def artifacts(monkeypatch, caplog):
    """Record the created artifacts as (kind, content)."""
    calls = []

    def create(kind):
        return lambda **content: calls.append((kind, content))

    monkeypatch.setattr(publisher_module, "create_markdown_artifact", create("markdown"))
    monkeypatch.setattr(publisher_module, "create_table_artifact", create("table"))
    monkeypatch.setattr(publisher_module, "get_run_logger", lambda: logging.getLogger("run"))
    return calls


def test_long_tables_state_their_number_of_rows(artifacts):
    with Publisher("s3://b") as publisher:
        publisher.table("t", [{"n": n} for n in range(700)], "numbers")
    ((_, content),) = artifacts
    assert len(content["table"]) == 500
    assert content["description"] == "numbers; first 500 of 700 rows"


def test_tables_are_cut_at_the_size_limit_of_artifacts(artifacts):
    with Publisher("s3://b") as publisher:
        publisher.table("t", [{"name": "ü" * 200, "n": n} for n in range(400)], "names", "s3://b/t")
    ((_, content),) = artifacts
    assert 250_000 < len(json.dumps(content["table"])) < MAX_BYTES
    assert re.fullmatch(r"names; first \d+ of 400 rows, all rows: s3://b/t",
                        content["description"])  # fmt: skip


def test_large_pngs_are_shrunk(tmp_path):
    path = tmp_path / "noise.png"
    Image.effect_noise((1500, 1500), 60).convert("RGB").save(path)
    assert path.stat().st_size > MAX_BYTES
    shown = stored_png(str(path), "noise")
    assert len(shown) < MAX_BYTES
    data = base64.b64decode(shown.split("base64,")[1].rstrip(")"))
    assert Image.open(io.BytesIO(data)).width > 300


def test_other_artifacts_are_published_if_the_server_rejects_one(artifacts, monkeypatch, caplog):
    def refuse(**content):
        if content["key"] == "large":
            request = httpx.Request("POST", "http://server/artifacts")
            raise httpx.HTTPStatusError(
                "413 Too Large", request=request, response=httpx.Response(413, request=request)
            )
        artifacts.append(("markdown", content))

    monkeypatch.setattr(publisher_module, "create_markdown_artifact", refuse)
    with Publisher("s3://bucket/run") as publisher:
        publisher.markdown("large", "text", "")
        publisher.markdown("run-summary", "text", "")
    assert [content["key"] for _, content in artifacts] == ["run-summary"]
    (record,) = caplog.records
    assert "not published in the Prefect UI: large (HTTPStatusError: 413" in record.getMessage()


def test_server_failure_is_logged_once_and_does_not_fail_the_run(artifacts, monkeypatch, caplog):
    attempts = []

    def fail(**content):
        attempts.append(content["key"])
        raise ConnectionError("no server")

    with Publisher("s3://bucket/run") as publisher:
        publisher.markdown("first", "text", "")
        monkeypatch.setattr(publisher_module, "create_markdown_artifact", fail)
        publisher.markdown("second", "text", "")
        publisher.markdown("third", "text", "")
    assert attempts == ["second"], "each attempt would wait for the server"
    assert [content["key"] for _, content in artifacts] == ["first"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "Artifacts not published in the Prefect UI: second, third (ConnectionError: no server); "
        "see s3://bucket/run"
    )


def test_galleries_are_cut_at_the_size_limit_of_artifacts():
    shown = Picture("id", "pug", "boxer, 90%", "loss 2.00", jpeg=b"x" * 30_000)
    content = truncated("# Head\n", _pictures([shown] * 16))
    assert MAX_BYTES / 2 < len(content) < MAX_BYTES
    kept = content.count("data:image/jpeg")
    assert f"{16 - kept} more are in the report" in content


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a|b", "[x](javascript:alert(1))", "*a*", "`a`", "a\nb"]
)
def test_markup_in_names_is_escaped(name):
    shown = escape_markdown(name)
    assert "\n" not in shown
    # Every markdown character is escaped by a backslash.
    assert not re.search(r"(?<!\\)[^\w\s\\]", shown)
