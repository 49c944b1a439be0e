"""The embed flow, and `pets similar` on its embeddings."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_model import write_tiny_model

from flows.embed import embed_flow
from pets.cli import main as cli
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError


@pytest.fixture
def model_url(tmp_path) -> str:
    return write_tiny_model(tmp_path / "model", ("Birman", "Pug"))


@pytest.fixture
def photos(write_folder, tmp_path, jpeg) -> Path:
    """Folders of two classes with one photo in both."""
    root = write_folder(tmp_path / "photos", {"birman": 30, "pug": 30})
    for label in ("birman", "pug"):
        (root / label / "twin.jpg").write_bytes(jpeg(999, 90, 70))
    return root


@pytest.fixture
def config(tmp_path, photos) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(photos), "name": "mine", "test_fraction": 0.3},
            "embed": {"min_similarity": 0.999999},
            "launch": {"num_threads": 1},
        }
    )


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_embed_flow_writes_embeddings_and_near_duplicates(
    config, model_url, photos, read_artifacts, capsys
) -> None:
    state = embed_flow(model_url, config, return_state=True)
    found = state.result()
    assert found.num_photos == pq.read_table(found.embeddings_url).num_rows == 62
    rows = pq.read_table(found.url).to_pylist()
    (twin,) = (row for row in rows if "twin" in row["id"])
    assert "twin" in twin["match_id"]
    assert twin["by_hash"]
    assert found.num_both >= 1
    artifacts = read_artifacts(state.state_details.flow_run_id)
    assert artifacts["near-duplicates"].count("data:image/jpeg") == 2 * min(len(rows), 20)
    assert "embedding and hash, different label" in artifacts["near-duplicates"]
    assert len(artifacts["near-duplicates"]) < 300_000
    # The source is not read if the version is in the store.
    nowhere = config.source.model_copy(update={"url": "/nowhere"})
    stored = config.model_copy(update={"source": nowhere})
    again = embed_flow(model_url, stored, "mine")
    assert pq.read_table(again.embeddings_url).equals(pq.read_table(found.embeddings_url))
    with pytest.raises(PetsError, match=r"mien: no such data set or version in .* Did you mean"):
        embed_flow(model_url, stored, "mien")
    run = str(Path(again.embeddings_url).parents[1])
    cli.main(["similar", str(photos / "pug/7.jpg"), "--embeddings", run, "--top", "2"])
    header, first, second, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["cosine", "target", "split", "id"]
    assert re.fullmatch(r"1\.000 +pug +(train|valid|test) +pug/7\.jpg", first)
    assert float(second.split()[0]) <= 1


def error_line(capsys, *argv: object) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(arg) for arg in argv])
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    return output.err


def test_similar_reports_errors_in_one_line(capsys, tmp_path, photos) -> None:
    photo = photos / "pug/0.jpg"
    (tmp_path / "text.parquet").write_text("a,b")
    for url, message in (
        (tmp_path / "no.parquet", "no.parquet does not exist"),
        (tmp_path / "text.parquet", "not an embeddings file, or damaged"),
    ):
        assert message in error_line(capsys, "similar", photo, "--embeddings", url)
    assert "--top = 0: must be" in error_line(
        capsys, "similar", photo, "--embeddings", "x", "--top", 0
    )


def test_similar_imports_neither_prefect_nor_torch(tmp_path, photos) -> None:
    code = (
        "import sys\nfrom pets.cli import main as cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    arguments = ["similar", str(photos / "pug/0.jpg"), "--embeddings", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & {"prefect", "torch"}
