"""Real ranks: equal results, errors that reach the caller, and clean-up of processes."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import processes
import pyarrow.parquet as pq
import pytest
import torch

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import read_predictions
from pets_core.models.package import create_model, load_model, save_model
from pets_core.progress import Progress
from pets_core.records.inference import PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime import worker
from pets_core.runtime.failures import (
    RankFailure,
    WorkerError,
    read_failures,
    to_exception,
    write_failure,
)
from pets_core.runtime.launcher import launch
from pets_core.runtime.photo_rank import PhotoRank
from pets_core.runtime.request import CheckResult, WorkRequest
from pets_core.targets.classes.confusion import confusion_counts
from pets_core.targets.classes.predictions import ClassPredictions
from pets_core.targets.classes.target import CLASSES
from pets_core.targets.evaluate import evaluate
from tasks.artifacts.training import publish_lr


def tiny(config: PipelineConfig, **groups) -> PipelineConfig:
    """Return settings with an untrained backbone of 0.1 million parameters at 64 pixels."""
    settings = {
        "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
        "train": {"batch_size": 32, "freeze_epochs": 1, "epochs": 1, "mixed_precision": "no"},
        "lr_find": {"num_steps": 12},
    } | groups
    return PipelineConfig.model_validate(config.model_dump(exclude_defaults=True) | settings)


def train_request(config: PipelineConfig, run_url: str) -> WorkRequest:
    return WorkRequest(
        stage="train", config=config, run_url=run_url, manifest=ingest(config), base_lr=1e-2
    )


def test_every_stage_runs_in_ranks(small_config, tmp_path) -> None:
    config, run_url, reported = tiny(small_config), str(tmp_path / "run"), []
    manifest = ingest(config)
    suggestion = launch(
        WorkRequest(stage="lr-find", config=config, run_url=run_url, manifest=manifest),
        LRSuggestion,
        on_progress=reported.append,
    )
    assert suggestion.num_steps == 12
    assert suggestion.chosen == suggestion.limited
    result = launch(train_request(config, run_url), TrainResult, on_progress=reported.append)
    assert [epoch.phase for epoch in result.epochs] == ["frozen", "unfrozen"]
    predicted = launch(
        WorkRequest(
            stage="predict",
            config=config,
            run_url=run_url,
            manifest=manifest,
            model_url=result.model_url,
            champion_url=result.best_model_url,
        ),
        PredictResult,
    )
    for url, split in ((predicted.predictions_url, "test"), (predicted.champion_url, "test"),
                       (predicted.valid_url, "valid")):  # fmt: skip
        predictions = read_predictions(url, CLASSES)
        assert predictions.info.split == split
        assert len(set(predictions.ids)) == len(predictions) == manifest.splits[split].num_rows
    assert read_predictions(predicted.predictions_url, CLASSES).info.model_url == result.model_url
    assert read_predictions(predicted.champion_url, CLASSES).info.model_url == result.best_model_url
    assert pq.read_table(predicted.maps_url).num_rows == 16
    report = evaluate(config, run_url, predicted, training=result)
    history = pq.read_table(result.history_url).to_pandas()
    assert len(history) == result.num_steps
    assert {"step", "phase", "epoch", "loss", "momentum", "lr_group_0"} <= set(history.columns)
    assert {p.stage for p in reported} >= {"lr-find", "train"}
    assert result.last_model_url == result.model_url == f"{run_url}/model"
    assert result.best_model_url == f"{run_url}/best"
    assert load_model(result.best_model_url).card == load_model(result.model_url).card
    assert Path(report.file("report.html")).read_text().lower().startswith("<!doctype html>")
    assert f"{result.base_lr:.2e}" in Path(report.file("report.html")).read_text()


@pytest.mark.parametrize("base_lr", [None, 2e-3])
def test_missing_suggestion_is_an_error_only_without_base_lr(
    small_config, tmp_path, shown, base_lr
) -> None:
    rates = {"start_lr": 1e6, "end_lr": 1e9, "num_steps": 12}
    train = {"batch_size": 32, "mixed_precision": "no", "base_lr": base_lr}
    config, reported = tiny(small_config, lr_find=rates, train=train), []
    request = WorkRequest(
        stage="lr-find", config=config, run_url=str(tmp_path / "run"), manifest=ingest(config)
    )
    if base_lr is None:
        with pytest.raises(PetsError, match=r"lower lr_find.start_lr .*, or set train.base_lr"):
            launch(request, LRSuggestion)
        return
    found = launch(request, LRSuggestion, on_warning=reported.append)
    assert (found.chosen, found.steepest) == (2e-3, None)
    (warning,) = [line for line in reported if "lr_find.start_lr" in line]
    assert warning.endswith("Training uses train.base_lr = 0.002")
    assert pq.read_table(found.curve_url).num_rows == found.num_steps
    assert "No suggestion" in shown(publish_lr, found)["lr-finder"]


@pytest.mark.slow
def test_number_of_ranks_does_not_change_the_training(small_config, tmp_path) -> None:
    """Losses and rates agree up to the summation order of fp32 at the same global batch size.

    A small model and few steps, so that rounding does not change a predicted class.
    """
    histories, counts = [], []
    for ranks in (1, 2, 4):
        config = tiny(small_config, launch={"num_processes": ranks})
        run_url = str(tmp_path / f"run-{ranks}")
        result = launch(train_request(config, run_url), TrainResult)
        assert result.num_processes == ranks
        histories.append(pq.read_table(result.history_url).to_pandas())
        request = train_request(config, run_url).model_copy(
            update={"stage": "predict", "model_url": result.model_url}
        )
        url = launch(request, PredictResult).predictions_url
        predictions = ClassPredictions.of(read_predictions(url, CLASSES))
        names = len(predictions.names)
        counts.append(confusion_counts(predictions.targets, predictions.predicted, names))
    one, *others = histories
    measured = ["samples_per_second", "data_seconds"]
    rounded = ["loss", "grad_norm"]
    for history in others:
        assert one.drop(columns=measured + rounded).equals(history.drop(columns=measured + rounded))
        for name in rounded:
            expected = pytest.approx(one[name].to_numpy(), abs=2e-4, rel=1e-3)
            assert history[name].to_numpy() == expected
    assert all(np.array_equal(confusion, counts[0]) for confusion in counts)
    assert counts[0].sum() == ingest(config).splits["test"].num_rows


def test_champion_with_other_classes_is_reported(small_config, tmp_path) -> None:
    config = tiny(small_config, train={"epochs": 0, "mixed_precision": "no"})
    request = train_request(config, str(tmp_path / "run"))
    result = launch(request, TrainResult)
    champion = tmp_path / "champion"
    shutil.copytree(result.model_url, champion)
    card = json.loads((champion / "model.json").read_text())
    card["vocabulary"][0]["name"] = "Yeti"
    (champion / "model.json").write_text(json.dumps(card))
    update = {
        "stage": "predict", "model_url": result.model_url, "champion_url": str(champion)
    }  # fmt: skip
    predicted = launch(request.model_copy(update=update), PredictResult)
    assert predicted.champion_url is None
    assert "has 37 classes and the data set 37, which differ in names" in predicted.champion_error


@pytest.mark.slow
def test_champion_that_one_rank_cannot_read_is_reported(small_config, tmp_path, faulty_agent):
    """The other ranks must not wait for it in the prediction of the champion."""
    config = tiny(small_config, launch={"num_processes": 2, "stall_timeout_seconds": 30})
    manifest, urls = ingest(config), [str(tmp_path / name) for name in ("model", "champion")]
    built = create_model(config, manifest.vocabulary, manifest.fingerprint)
    for url in urls:
        save_model(url, built.card, built.model.state_dict())
    request = WorkRequest(
        stage="predict", config=config, run_url=str(tmp_path / "run"), manifest=manifest,
        model_url=urls[0], champion_url=urls[1],
    )  # fmt: skip
    predicted = launch(request, PredictResult)
    assert predicted.champion_url is None
    assert predicted.champion_error == faulty_agent


def test_check_stage_rejects_an_unknown_backbone(small_config) -> None:
    config = tiny(small_config, model={"backbone": "resnet33"})
    with pytest.raises(PetsError, match=r"Did you mean .*resnet34"):
        launch(WorkRequest(stage="check", config=config), CheckResult)


def test_require_gpu_fails_without_a_gpu(small_config, monkeypatch) -> None:
    if torch.cuda.is_available():
        # Not otherwise: another environment needs another agent, which imports torch again.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = tiny(small_config, launch={"require_gpu": True})
    for stage in ("check", "lr-find"):
        request = WorkRequest(stage=stage, config=config, run_url=config.store)
        with pytest.raises(PetsError, match=r"launch\.require_gpu = true, but torch finds no GPU"):
            launch(request, CheckResult)


def test_bf16_trains_on_any_cpu(small_config, tmp_path) -> None:
    config = tiny(small_config, train={"mixed_precision": "bf16", "epochs": 0, "batch_size": 64})
    result = launch(train_request(config, str(tmp_path / "run")), TrainResult)
    assert result.mixed_precision == "bf16"
    assert result.epochs[0].train_loss < 5


def test_each_stage_checks_the_hardware(small_config) -> None:
    """A stage in another pool runs without a check stage before it."""
    config = tiny(small_config, train={"batch_norm": "sync"})
    fields = {"config": config, "run_url": config.store, "manifest": ingest(config)}
    for stage in ("check", "lr-find", "train"):
        with pytest.raises(PetsError, match=r"batch_norm = sync works on NVIDIA and AMD GPUs"):
            launch(WorkRequest(stage=stage, **fields), CheckResult)


@pytest.mark.parametrize("stage", ["lr-find", "train"])
def test_batch_norm_with_batch_size_1_is_rejected_before_any_step(
    small_config, tmp_path, stage
) -> None:
    """Even if frozen epochs, which do not train batch norm, come first."""
    train = {"batch_norm": "train", "batch_size": 1, "freeze_epochs": 1, "epochs": 1}
    config, reported = tiny(small_config, train=train), []
    request = train_request(config, str(tmp_path / "run")).model_copy(update={"stage": stage})
    with pytest.raises(PetsError, match=r"train.batch_norm = train .* train.batch_size = 1, "):
        launch(request, TrainResult, on_progress=reported.append)
    assert not [progress for progress in reported if progress.stage == stage]


def test_rank_error_reaches_the_caller(small_config, tmp_path) -> None:
    request = train_request(tiny(small_config), str(tmp_path / "run"))
    shard = request.manifest.splits["train"].shards[0]
    path = Path(request.manifest.shard_url(shard))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PetsError, match=rf"{shard.path} fails its checksum"):
        launch(request, TrainResult)


def test_model_with_other_classes_is_rejected(small_config, tmp_path) -> None:
    config = tiny(small_config)
    request = train_request(config, str(tmp_path / "run"))
    result = launch(request, TrainResult)
    fewer = request.manifest.model_copy(update={"vocabulary": request.manifest.vocabulary[:-1]})
    with pytest.raises(PetsError, match=r"has 37 classes and the data set 36"):
        launch(
            request.model_copy(
                update={"stage": "predict", "manifest": fewer, "model_url": result.model_url}
            ),
            PredictResult,
        )


LAUNCH_AND_WAIT = """
import sys
from pathlib import Path
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.launcher import launch
from pets_core.records.training import TrainResult
request = WorkRequest.model_validate_json(Path(sys.argv[1]).read_text())
launch(
    request, TrainResult,
    on_progress=lambda p: print(p.stage, p.done, flush=True),
    on_warning=lambda warning: print(warning, flush=True),
)
"""


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint(small_config, tmp_path) -> None:
    """A terminal sends SIGINT to every process of its foreground group."""
    train = {"freeze_epochs": 1, "epochs": 5000, "batch_size": 8, "checkpoint_steps": 1_000_000}
    config = tiny(small_config, train=train, launch={"num_processes": 2})
    path = tmp_path / "request.json"
    path.write_text(train_request(config, str(tmp_path / "run")).model_dump_json())
    caller = subprocess.Popen(
        [sys.executable, "-c", LAUNCH_AND_WAIT, str(path)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert any(line.startswith("train") for line in caller.stdout), "training has started"
        os.killpg(caller.pid, signal.SIGINT)
        output, _ = caller.communicate(timeout=600)
    finally:
        caller.kill()
    (step,) = set(re.findall(r"stopped after step (\d+)", output))
    assert (tmp_path / f"run/checkpoints/step-{int(step):09}/checkpoint.json").exists()


WARN = """
import logging, os, sys, warnings
from pathlib import Path
def patch():
    worker = sys.modules["pets_core.runtime.worker"]
    forward_warnings = worker.forward_warnings
    def forward_and_warn():
        forward_warnings()
        warnings.warn("a batch is odd")
        logging.getLogger("some.library").warning("the disk is slow\\nvery slow")
    def forward():
        wanted = Path(__file__).with_name("rank").read_text()
        is_wanted = os.environ.get("RANK", "none") == wanted
        (forward_and_warn if is_wanted else forward_warnings)()
    if forward_warnings.__name__ != "forward":
        worker.forward_warnings = forward
os.register_at_fork(after_in_child=patch)
"""


@pytest.mark.slow
def test_rank_warnings_reach_the_caller_with_the_rank(small_config, tmp_path, monkeypatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(WARN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    request = train_request(tiny(small_config), "")
    # In one test, so that both share an agent.
    for num_processes, rank, prefix in ((2, "1", "rank 1: "), (1, "none", "")):
        (tmp_path / "rank").write_text(rank)
        config = tiny(small_config, launch={"num_processes": num_processes})
        update = {"config": config, "run_url": str(tmp_path / f"run-{num_processes}")}
        received: list[str] = []
        launch(request.model_copy(update=update), TrainResult, on_warning=received.append)
        expected = [f"{prefix}a batch is odd", f"{prefix}the disk is slow very slow"]
        assert sorted(received) == expected


@pytest.mark.usefixtures("rank_in_this_process")
def test_creating_a_rank_does_not_change_the_warning_handlers(small_config, tmp_path) -> None:
    handlers, show = [*logging.getLogger().handlers], warnings.showwarning
    PhotoRank(train_request(tiny(small_config), str(tmp_path / "run")))
    assert logging.getLogger().handlers == handlers
    assert warnings.showwarning is show


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")
@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_ended_caller_leaves_no_processes(small_config, tmp_path, ending: signal.Signals) -> None:
    config = tiny(
        small_config,
        train={"freeze_epochs": 1, "epochs": 5000, "batch_size": 8},
        launch={"num_processes": 2},
    )
    path = tmp_path / "request.json"
    path.write_text(train_request(config, str(tmp_path / "run")).model_dump_json())
    caller = subprocess.Popen(
        [sys.executable, "-c", LAUNCH_AND_WAIT, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert any(line.startswith("train") for line in caller.stdout), "training has started"
        started = processes.descendants(caller.pid)
        assert len(started) == 5, "a fork server, a launcher, a store and two ranks"
        caller.send_signal(ending)
        caller.wait(timeout=600)
    finally:
        # A failed test must not leave a training; this ends all of its processes.
        caller.kill()
    assert processes.wait_for_exit(started)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
def test_killed_stage_or_agent_does_not_affect_later_stages(small_config, tmp_path) -> None:
    endless = tiny(small_config, train={"freeze_epochs": 1, "epochs": 5000, "batch_size": 8})
    request = train_request(endless, str(tmp_path / "run"))
    check = WorkRequest(stage="check", config=tiny(small_config))

    def train_and_kill(find_victim) -> None:
        killed: list[int] = []

        def kill(progress: Progress) -> None:
            if progress.stage == "train" and not killed:
                killed.append(find_victim(os.getpid()))
                os.kill(killed[0], signal.SIGKILL)

        before = processes.descendants(os.getpid())
        with pytest.raises(WorkerError, match="exit code -9"):
            launch(request, TrainResult, on_progress=kill)
        assert processes.wait_for_exit(
            [*set(processes.descendants(os.getpid())) - {*before}, *killed]
        )

    launch(check, CheckResult)
    (agent,) = processes.agents(os.getpid())
    train_and_kill(processes.launcher)
    assert processes.agents(os.getpid()) == [agent]
    train_and_kill(lambda pid: processes.agents(pid)[0])
    assert launch(check, CheckResult).device == "cpu"
    (another,) = processes.agents(os.getpid())
    assert another != agent


UNTOUCHED = """
import torch

def touch(*_):
    raise RuntimeError("the agent touches the GPU")

for module, names in ((torch.cuda, ("is_available", "device_count", "_lazy_init")),
                      (torch._C, ("_cuda_getDeviceCount", "_cuda_init"))):
    for name in names:
        setattr(module, name, touch)
import pets_core.runtime.agent
"""


def test_agent_has_a_single_thread(small_config) -> None:
    """With further threads, a fork may inherit a locked lock and hang."""
    launch(WorkRequest(stage="check", config=tiny(small_config)), CheckResult)
    (agent,) = processes.agents(os.getpid())
    # Arrow's allocator has a thread, which it stops before a fork.
    assert set(processes.other_threads(agent)) <= {"jemalloc_bg_thd"}


@pytest.mark.slow
def test_agent_does_not_initialise_cuda() -> None:
    """CUDA does not survive a fork."""
    subprocess.run([sys.executable, "-c", UNTOUCHED], check=True)


@pytest.mark.parametrize(("setting", "first"), [("freeze_to", -99), ("unfreeze_to", 99)])
def test_first_group_beyond_the_layer_groups_is_rejected(small_config, setting, first) -> None:
    config = tiny(small_config, train={setting: first})
    with pytest.raises(PetsError, match=rf"train\.{setting} = {first}: the model has 7 layer"):
        launch(WorkRequest(stage="check", config=config), CheckResult)


def test_fewer_groups_after_unfreezing_than_before_are_refused(small_config) -> None:
    config = tiny(small_config, train={"freeze_to": -3, "unfreeze_to": -1})
    with pytest.raises(PetsError, match=r"unfreeze_to = -1 is after train\.freeze_to = -3"):
        worker.check(WorkRequest(stage="check", config=config))
    worker.check(
        WorkRequest(
            stage="check",
            config=tiny(small_config, train={"freeze_to": -3, "unfreeze_to": -1, "epochs": 0}),
        )
    )


def test_missing_tracker_package_is_rejected(small_config, monkeypatch) -> None:
    monkeypatch.setattr(worker, "get_available_trackers", lambda: ["tensorboard"])
    config = tiny(small_config, train={"log_with": "mlflow"})
    with pytest.raises(PetsError, match=r"train\.log_with = mlflow: .*pets-pipeline\[mlflow\]"):
        worker.check(WorkRequest(stage="check", config=config))


@pytest.mark.parametrize("setting", [{"keep": "best"}, {"early_stopping_epochs": 2}])
def test_settings_that_need_validation_photos_fail_without_them(
    small_config, tmp_path, setting
) -> None:
    source = small_config.source.model_dump(exclude_defaults=True) | {"valid_fraction": 0}
    config = tiny(small_config, train=setting, source=source)
    with pytest.raises(
        PetsError, match=rf"train\.{next(iter(setting))} = .*source\.valid_fraction"
    ):
        launch(train_request(config, str(tmp_path / "run")), TrainResult)


@pytest.mark.slow
def test_sharded_training_matches_unsharded_training(small_config, tmp_path) -> None:
    """In frozen and unfrozen phases; the model and the checkpoints are not sharded."""
    results = {}
    for name, sharded in (("whole", False), ("sharded", True)):
        config = tiny(
            small_config,
            model={"backbone": "resnet10t", "weights": "none", "image_size": 32},
            train={
                "mixed_precision": "no",
                "freeze_epochs": 1,
                "epochs": 1,
                # A sharded model trains on photos in any case.
                "frozen_on_features": sharded,
                "max_grad_norm": 0.5,
                "keep": "best",
            },
            launch={"num_processes": 2, "num_threads": 1, "shard_model": sharded},
        )
        results[name] = launch(train_request(config, str(tmp_path / name)), TrainResult)
    tables = {name: pq.read_table(result.history_url) for name, result in results.items()}
    for column, close in (("loss", 1e-3), ("grad_norm", 1e-2), ("momentum", 1e-9)):
        expected, found = (tables[name][column].to_pylist() for name in ("whole", "sharded"))
        assert found == pytest.approx(expected, rel=close)
    states = [
        load_model(results[name].model_url).model.state_dict() for name in ("whole", "sharded")
    ]
    for key, value in states[0].items():
        assert torch.allclose(value, states[1][key], rtol=1e-2, atol=1e-3), key
    # Its checkpoint of the previous epoch can be resumed with any number of ranks.
    run = Path(results["sharded"].history_url).parent
    shutil.rmtree(max((run / "checkpoints").iterdir()))
    alone = config.launch.model_copy(update={"num_processes": 1, "shard_model": False})
    config = config.model_copy(update={"launch": alone})
    launch(train_request(config, str(run)), TrainResult)
    resumed = pq.read_table(results["sharded"].history_url)["loss"].to_pylist()
    assert resumed == pytest.approx(tables["whole"]["loss"].to_pylist(), rel=1e-3)


def test_training_supports_all_options_at_once(small_config, tmp_path) -> None:
    """On two ranks, with test-time augmentation in the prediction."""
    config = tiny(
        small_config,
        launch={"num_processes": 2},
        transform={
            "min_crop_area": 0.5, "erase_probability": 0.5, "mixup_alpha": 0.4, "cutmix_alpha": 1.0
        },
        train={
            "micro_batch_size": 8, "max_grad_norm": 1.0, "label_smoothing": 0.1, "keep": "best",
            "class_weights": "balanced", "ema_decay": 0.9, "early_stopping_epochs": 5,
        },
        evaluate={"tta_views": 2, "embeddings": True},
    )  # fmt: skip
    run_url = str(tmp_path / "run")
    result = launch(train_request(config, run_url), TrainResult)
    request = train_request(config, run_url).model_copy(
        update={"stage": "predict", "model_url": result.model_url}
    )
    assert (result.best_model_url, result.last_model_url) == (result.model_url, f"{run_url}/last")
    assert load_model(result.last_model_url)
    predicted = launch(request, PredictResult)
    assert read_predictions(predicted.predictions_url, CLASSES).info.tta_views == 2
    stored = pq.read_table(predicted.predictions_url, columns=["embedding"])["embedding"]
    assert len(stored[0].as_py()) == load_model(result.model_url).card.num_features


@pytest.mark.parametrize(
    ("failures", "root_cause"),
    [
        # A nan gradient makes every rank fail, and another rank may write its failure first.
        ([("the gradient norm is nan at step 3", "refused"), ("the loss is nan", "refused")], 1),
        ([("Connection closed by peer", "cut off"), ("out of memory", "failed")], 1),
        ([("out of memory", "failed"), ("out of memory too", "failed")], 0),
    ],
)
def test_exception_reports_the_root_cause(tmp_path, failures, root_cause) -> None:
    for rank, (message, kind) in enumerate(failures):
        failure = RankFailure(rank=rank, message=message, kind=kind, at=rank)
        write_failure(failure, tmp_path, str(rank))
    assert failures[root_cause][0] in str(to_exception(read_failures(tmp_path)))
