"""Watchdog: reports all stacks once if work stalls, and nothing otherwise."""

import threading
import time

import pytest

from pets_core.config.model import ModelConfig
from pets_core.data.ingest.commit import ingest
from pets_core.models.package import create_model, save_model
from pets_core.runtime import photo_rank, photo_stages
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.watchdog import Watchdog
from pets_core.runtime.worker import run


def hang(resume: threading.Event) -> None:
    resume.wait(30)


def test_stall_is_reported_once_with_all_stacks() -> None:
    reports, resume = [], threading.Event()
    other = threading.Thread(target=hang, args=(resume,), name="other")
    other.start()
    with Watchdog(0.1, reports.append):
        time.sleep(0.5)
    resume.set()
    other.join()
    assert len(reports) == 1
    assert reports[0].startswith("thread MainThread:")
    assert "test_stall_is_reported_once" in reports[0]
    assert "thread other:" in reports[0]
    assert "hang" in reports[0]


def test_active_or_finished_work_is_not_reported() -> None:
    reports: list[str] = []
    watchdog = Watchdog(0.5, reports.append)
    with watchdog:
        for _ in range(20):
            time.sleep(0.05)
            watchdog.beat()
    time.sleep(1)
    with watchdog:
        pass
    assert reports == []


@pytest.mark.usefixtures("rank_in_this_process")
@pytest.mark.parametrize("stage", ["predict", "embed"])
def test_opening_photos_and_models_is_not_watched(small_config, tmp_path, monkeypatch, stage):
    """Download and decoding take minutes without a batch."""
    manifest, model_url = ingest(small_config), str(tmp_path / "model")
    update = {"backbone": "test_byobnet", "weights": "none", "image_size": 64}
    config = small_config.model_copy(update={"model": ModelConfig.model_validate(update)})
    built = create_model(config, manifest.vocabulary, manifest.fingerprint)
    save_model(model_url, built.card, built.model.state_dict())
    watched, calls = [], []
    monkeypatch.setattr(Watchdog, "__enter__", lambda self: watched.append(self))
    monkeypatch.setattr(Watchdog, "__exit__", lambda *_: watched.clear())

    def record_calls(module, name) -> None:
        function = getattr(module, name)

        def recorded(*arguments, **settings):
            calls.append((name, bool(watched)))
            return function(*arguments, **settings)

        monkeypatch.setattr(module, name, recorded)

    record_calls(photo_rank, "open_decoded")
    record_calls(photo_stages, "load_model")
    record_calls(photo_stages, "predict_views")
    record_calls(photo_stages, "predict_split")
    run(
        WorkRequest(
            stage=stage, config=config, run_url=str(tmp_path / "run"), manifest=manifest,
            model_url=model_url,
        )
    )  # fmt: skip
    predicts = {"predict": "predict_views", "embed": "predict_split"}[stage]
    assert set(calls) == {("load_model", False), ("open_decoded", False), (predicts, True)}
