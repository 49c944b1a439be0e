"""The watchdog: silent while work goes on, once it does not it tells where that stands."""

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


def hang(go_on: threading.Event) -> None:
    go_on.wait(30)


def test_silence_is_told_once_with_every_threads_stack() -> None:
    told, go_on = [], threading.Event()
    other = threading.Thread(target=hang, args=(go_on,), name="other")
    other.start()
    with Watchdog(0.1, told.append):
        time.sleep(0.5)
    go_on.set()
    other.join()
    assert len(told) == 1
    assert told[0].startswith("thread MainThread:")
    assert "test_silence_is_told_once" in told[0]
    assert "thread other:" in told[0]
    assert "hang" in told[0]


def test_work_that_goes_on_or_is_over_is_left_alone() -> None:
    told: list[str] = []
    watchdog = Watchdog(0.5, told.append)
    with watchdog:
        for _ in range(20):
            time.sleep(0.05)
            watchdog.beat()
    time.sleep(1)
    with watchdog:
        pass
    assert told == []


@pytest.mark.parametrize("stage", ["predict", "embed"])
def test_opening_photos_and_models_is_not_watched(small_config, tmp_path, monkeypatch, stage):
    """It downloads and decodes for minutes without a batch."""
    manifest, model_url = ingest(small_config), str(tmp_path / "model")
    update = {"backbone": "test_byobnet", "weights": "none", "image_size": 64}
    config = small_config.model_copy(update={"model": ModelConfig.model_validate(update)})
    built = create_model(config, manifest.classes, manifest.fingerprint)
    save_model(model_url, built.card, built.model.state_dict())
    watched, seen = [], []
    monkeypatch.setattr(Watchdog, "__enter__", lambda self: watched.append(self))
    monkeypatch.setattr(Watchdog, "__exit__", lambda *_: watched.clear())

    def noting(module, name) -> None:
        function = getattr(module, name)

        def noted(*arguments, **settings):
            seen.append((name, bool(watched)))
            return function(*arguments, **settings)

        monkeypatch.setattr(module, name, noted)

    noting(photo_rank, "open_decoded")
    noting(photo_stages, "load_model")
    noting(photo_stages, "predict_views")
    noting(photo_stages, "predict_split")
    run(
        WorkRequest(
            stage=stage, config=config, run_url=str(tmp_path / "run"), manifest=manifest,
            model_url=model_url,
        )
    )  # fmt: skip
    predicts = {"predict": "predict_views", "embed": "predict_split"}[stage]
    assert set(seen) == {("load_model", False), ("open_decoded", False), (predicts, True)}
