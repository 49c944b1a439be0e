"""Real ranks: they agree with each other, fail loudly, and leave no process behind."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from importlib.util import find_spec
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
from pets_core.models.package import load_model
from pets_core.progress import Progress
from pets_core.records.evaluation import PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
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
    """Small enough for a test: an untrained backbone of 0.1 million parameters at 64 pixels."""
    settings = {
        "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
        "train": {"batch_size": 32, "epochs": 1, "mixed_precision": "no"},
        "lr_find": {"num_steps": 12},
    } | groups
    return PipelineConfig.model_validate(config.model_dump(exclude_defaults=True) | settings)


def train_request(config: PipelineConfig, run_url: str) -> WorkRequest:
    return WorkRequest(
        stage="train", config=config, run_url=run_url, manifest=ingest(config), base_lr=1e-2
    )


def test_every_stage_in_ranks(small_config, tmp_path) -> None:
    config, run_url, told = tiny(small_config), str(tmp_path / "run"), []
    manifest = ingest(config)
    suggestion = launch(
        WorkRequest(stage="lr-find", config=config, run_url=run_url, manifest=manifest),
        LRSuggestion,
        on_progress=told.append,
    )
    assert suggestion.num_steps == 12
    assert suggestion.chosen == suggestion.steepest
    result = launch(train_request(config, run_url), TrainResult, on_progress=told.append)
    assert [epoch.phase for epoch in result.epochs] == ["frozen", "unfrozen"]
    said = launch(
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
    for url, split in ((said.predictions_url, "test"), (said.champion_url, "test"),
                       (said.valid_url, "valid")):  # fmt: skip
        predictions = read_predictions(url, CLASSES)
        assert predictions.info.split == split
        assert len(set(predictions.ids)) == len(predictions) == manifest.splits[split].num_rows
    assert read_predictions(said.predictions_url, CLASSES).info.model_url == result.model_url
    assert read_predictions(said.champion_url, CLASSES).info.model_url == result.best_model_url
    assert pq.read_table(said.maps_url).num_rows == 16
    report = evaluate(config, run_url, said, training=result)
    history = pq.read_table(result.history_url).to_pandas()
    assert len(history) == result.num_steps
    assert {"step", "phase", "epoch", "loss", "momentum", "lr_group_0"} <= set(history.columns)
    assert {p.stage for p in told} >= {"lr-find", "train"}
    assert result.last_model_url == result.model_url == f"{run_url}/model"
    assert result.best_model_url == f"{run_url}/best"
    assert load_model(result.best_model_url).card == load_model(result.model_url).card
    assert Path(report.file("report.html")).read_text().lower().startswith("<!doctype html>")
    assert f"{result.base_lr:.2e}" in Path(report.file("report.html")).read_text()


@pytest.mark.parametrize("base_lr", [None, 2e-3])
def test_a_suggestion_is_needed_only_where_no_rate_is_set(
    small_config, tmp_path, shown, base_lr
) -> None:
    rates = {"start_lr": 1e6, "end_lr": 1e9, "num_steps": 12}
    train = {"batch_size": 32, "mixed_precision": "no", "base_lr": base_lr}
    config, warned = tiny(small_config, lr_find=rates, train=train), []
    request = WorkRequest(
        stage="lr-find", config=config, run_url=str(tmp_path / "run"), manifest=ingest(config)
    )
    if base_lr is None:
        with pytest.raises(PetsError, match=r"lower lr_find.start_lr .*, or set train.base_lr"):
            launch(request, LRSuggestion)
        return
    found = launch(request, LRSuggestion, on_warning=warned.append)
    assert (found.chosen, found.steepest) == (2e-3, None)
    (warning,) = [line for line in warned if "lr_find.start_lr" in line]
    assert warning.endswith("Training uses train.base_lr = 0.002")
    assert pq.read_table(found.curve_url).num_rows == found.num_steps
    assert "No suggestion" in shown(publish_lr, found)["lr-finder"]


def test_any_number_of_ranks_is_the_same_training(small_config, tmp_path) -> None:
    """The same losses and rates at the same global batch; fp32, so up to summation order.

    So few steps, of so small a model, that rounding has no room to change what is predicted.
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


def test_a_champion_of_other_classes_is_told_of(small_config, tmp_path) -> None:
    config = tiny(small_config, train={"epochs": 0, "mixed_precision": "no"})
    request = train_request(config, str(tmp_path / "run"))
    result = launch(request, TrainResult)
    champion = tmp_path / "champion"
    shutil.copytree(result.model_url, champion)
    card = json.loads((champion / "model.json").read_text())
    card["classes"][0]["name"] = "Yeti"
    (champion / "model.json").write_text(json.dumps(card))
    asked = {
        "stage": "predict", "model_url": result.model_url, "champion_url": str(champion)
    }  # fmt: skip
    said = launch(request.model_copy(update=asked), PredictResult)
    assert said.champion_url is None
    assert "has 37 classes and the data set 37, which differ in names" in said.champion_error


def test_the_check_refuses_before_any_work(small_config) -> None:
    config = tiny(small_config, model={"backbone": "resnet33"})
    with pytest.raises(PetsError, match=r"Did you mean .*resnet34"):
        launch(WorkRequest(stage="check", config=config), CheckResult)


def test_a_gpu_that_is_wanted_and_not_there_is_told_of(small_config, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = tiny(small_config, launch={"require_gpu": True})
    for stage in ("check", "lr-find"):
        asked = WorkRequest(stage=stage, config=config, run_url=config.store)
        with pytest.raises(PetsError, match=r"launch\.require_gpu = true, but torch finds no GPU"):
            launch(asked, CheckResult)


def test_bf16_trains_on_any_cpu(small_config, tmp_path) -> None:
    config = tiny(small_config, train={"mixed_precision": "bf16", "epochs": 0, "batch_size": 64})
    result = launch(train_request(config, str(tmp_path / "run")), TrainResult)
    assert result.mixed_precision == "bf16"
    assert result.epochs[0].train_loss < 5


def test_what_a_machine_cannot_do_is_refused_in_each_stage(small_config) -> None:
    """A stage on another pool has no check before it."""
    config = tiny(small_config, train={"batch_norm": "sync"})
    asked = {"config": config, "run_url": config.store, "manifest": ingest(config)}
    for stage in ("check", "lr-find", "train"):
        with pytest.raises(PetsError, match=r"batch_norm = sync works on NVIDIA and AMD GPUs"):
            launch(WorkRequest(stage=stage, **asked), CheckResult)


@pytest.mark.parametrize("stage", ["lr-find", "train"])
def test_batch_norm_on_single_photos_is_refused_before_any_step(
    small_config, tmp_path, stage
) -> None:
    """Also where frozen epochs, which leave batch norm alone, come first."""
    train = {"batch_norm": "train", "batch_size": 1, "freeze_epochs": 1, "epochs": 1}
    config, reported = tiny(small_config, train=train), []
    request = train_request(config, str(tmp_path / "run")).model_copy(update={"stage": stage})
    with pytest.raises(PetsError, match=r"train.batch_norm = train .* train.batch_size = 1, "):
        launch(request, TrainResult, on_progress=reported.append)
    assert not [progress for progress in reported if progress.stage == stage]


def test_a_ranks_own_error_reaches_the_caller(small_config, tmp_path) -> None:
    request = train_request(tiny(small_config), str(tmp_path / "run"))
    shard = request.manifest.splits["train"].shards[0]
    path = Path(request.manifest.shard_url(shard))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PetsError, match=rf"{shard.path} fails its checksum"):
        launch(request, TrainResult)


def test_a_model_of_other_classes_is_refused(small_config, tmp_path) -> None:
    config = tiny(small_config)
    request = train_request(config, str(tmp_path / "run"))
    result = launch(request, TrainResult)
    fewer = request.manifest.model_copy(update={"classes": request.manifest.classes[:-1]})
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
def test_ctrl_c_at_a_terminal_leaves_a_checkpoint(small_config, tmp_path) -> None:
    """A terminal sends it to every process of its foreground group."""
    never = {"epochs": 5000, "batch_size": 8, "checkpoint_steps": 1_000_000}
    config = tiny(small_config, train=never, launch={"num_processes": 2})
    path = tmp_path / "request.json"
    path.write_text(train_request(config, str(tmp_path / "run")).model_dump_json())
    caller = subprocess.Popen(
        [sys.executable, "-c", LAUNCH_AND_WAIT, str(path)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert any(line.startswith("train") for line in caller.stdout), "training has begun"
        os.killpg(caller.pid, signal.SIGINT)
        said, _ = caller.communicate(timeout=60)
    finally:
        caller.kill()
    (step,) = set(re.findall(r"stopped after step (\d+)", said))
    assert (tmp_path / f"run/checkpoints/step-{int(step):09}/checkpoint.json").exists()


WARN = """
import logging, os, sys, warnings
def patch():
    worker = sys.modules["pets_core.runtime.worker"]
    forward_warnings = worker.forward_warnings
    def forward_and_warn():
        forward_warnings()
        warnings.warn("a batch is odd")
        logging.getLogger("some.library").warning("the disk is slow\\nvery slow")
    def forward():
        is_wanted = os.environ.get("RANK", "none") == os.environ["RANK_THAT_WARNS"]
        (forward_and_warn if is_wanted else forward_warnings)()
    if forward_warnings.__name__ != "forward":
        worker.forward_warnings = forward
os.register_at_fork(after_in_child=patch)
"""


@pytest.mark.parametrize(("num_processes", "rank", "mark"), [(2, "1", "rank 1: "), (1, "none", "")])
def test_warnings_of_ranks_are_told_and_of_other_ranks_with_their_number(
    small_config, tmp_path, monkeypatch, num_processes, rank, mark
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WARN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("RANK_THAT_WARNS", rank)
    config = tiny(small_config, launch={"num_processes": num_processes})
    heard: list[str] = []
    launch(train_request(config, str(tmp_path / "run")), TrainResult, on_warning=heard.append)
    assert sorted(heard) == [f"{mark}a batch is odd", f"{mark}the disk is slow very slow"]


@pytest.mark.usefixtures("rank_in_this_process")
def test_a_rank_leaves_the_warnings_of_the_process_that_makes_it_alone(
    small_config, tmp_path
) -> None:
    handlers, show = [*logging.getLogger().handlers], warnings.showwarning
    PhotoRank(train_request(tiny(small_config), str(tmp_path / "run")))
    assert logging.getLogger().handlers == handlers
    assert warnings.showwarning is show


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")
@pytest.mark.parametrize(
    "ending", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_no_process_outlives_its_caller(small_config, tmp_path, ending: signal.Signals) -> None:
    config = tiny(
        small_config,
        train={"epochs": 5000, "batch_size": 8},
        launch={"num_processes": 2},
    )
    path = tmp_path / "request.json"
    path.write_text(train_request(config, str(tmp_path / "run")).model_dump_json())
    caller = subprocess.Popen(
        [sys.executable, "-c", LAUNCH_AND_WAIT, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert any(line.startswith("train") for line in caller.stdout), "training has begun"
        started = processes.below(caller.pid)
        assert len(started) == 5, "a fork server, a launcher, a store and two ranks"
        caller.send_signal(ending)
        caller.wait(timeout=60)
    finally:
        # A failed test must not leave a training behind; this ends all of it.
        caller.kill()
    assert processes.gone(started)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")
def test_a_stage_or_agent_that_is_killed_takes_no_later_stage_with_it(
    small_config, tmp_path
) -> None:
    endless = tiny(small_config, train={"epochs": 5000, "batch_size": 8})
    request = train_request(endless, str(tmp_path / "run"))
    check = WorkRequest(stage="check", config=tiny(small_config))

    def train_and_kill(find_victim) -> None:
        killed: list[int] = []

        def kill(progress: Progress) -> None:
            if progress.stage == "train" and not killed:
                killed.append(find_victim(os.getpid()))
                os.kill(killed[0], signal.SIGKILL)

        before = processes.below(os.getpid())
        with pytest.raises(WorkerError, match="exit code -9"):
            launch(request, TrainResult, on_progress=kill)
        assert processes.gone([*set(processes.below(os.getpid())) - {*before}, *killed])

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


def test_the_agent_has_a_single_thread(small_config) -> None:
    """Else a fork of it may inherit a lock that another thread holds, and hang."""
    launch(WorkRequest(stage="check", config=tiny(small_config)), CheckResult)
    (agent,) = processes.agents(os.getpid())
    # Arrow's allocator has one, too, which it stops for a fork.
    assert set(processes.other_threads(agent)) <= {"jemalloc_bg_thd"}


def test_the_agent_leaves_the_gpu_to_its_children() -> None:
    """CUDA does not survive a fork."""
    subprocess.run([sys.executable, "-c", UNTOUCHED], check=True)


@pytest.mark.parametrize("freeze_to", [-99, 99])
def test_more_layer_groups_than_the_model_has_are_refused(small_config, freeze_to) -> None:
    config = tiny(small_config, train={"freeze_to": freeze_to})
    with pytest.raises(PetsError, match=rf"train\.freeze_to = {freeze_to}: the model has 7 layer"):
        launch(WorkRequest(stage="check", config=config), CheckResult)


def test_a_tracker_that_is_not_installed_is_refused(small_config) -> None:
    if find_spec("mlflow"):
        pytest.skip("MLflow is installed")
    config = tiny(small_config, train={"log_with": "mlflow"})
    with pytest.raises(PetsError, match=r"train\.log_with = mlflow: .*pets-pipeline\[mlflow\]"):
        launch(WorkRequest(stage="check", config=config), CheckResult)


@pytest.mark.parametrize("setting", [{"keep": "best"}, {"early_stopping_epochs": 2}])
def test_settings_that_need_validation_photos_say_so(small_config, tmp_path, setting) -> None:
    source = small_config.source.model_dump(exclude_defaults=True) | {"valid_fraction": 0}
    config = tiny(small_config, train=setting, source=source)
    with pytest.raises(
        PetsError, match=rf"train\.{next(iter(setting))} = .*source\.valid_fraction"
    ):
        launch(train_request(config, str(tmp_path / "run")), TrainResult)


@pytest.mark.slow
def test_a_sharded_training_is_the_same(small_config, tmp_path) -> None:
    """Through freezing and unfreezing; what it leaves is whole, as is the checkpoint between."""
    results = {}
    for name, sharded in (("whole", False), ("sharded", True)):
        config = tiny(
            small_config,
            model={"backbone": "resnet10t", "weights": "none", "image_size": 32},
            train={"mixed_precision": "no", "epochs": 1, "max_grad_norm": 0.5, "keep": "best"},
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
    # Its checkpoint of the epoch before is one that any number of ranks goes on from.
    run = Path(results["sharded"].history_url).parent
    shutil.rmtree(max((run / "checkpoints").iterdir()))
    alone = config.launch.model_copy(update={"num_processes": 1, "shard_model": False})
    config = config.model_copy(update={"launch": alone})
    launch(train_request(config, str(run)), TrainResult)
    resumed = pq.read_table(results["sharded"].history_url)["loss"].to_pylist()
    assert resumed == pytest.approx(tables["whole"]["loss"].to_pylist(), rel=1e-3)


def test_a_training_with_everything_on(small_config, tmp_path) -> None:
    """Every option of the trainer at once, on two ranks; views at the end."""
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
    said = launch(request, PredictResult)
    assert read_predictions(said.predictions_url, CLASSES).info.tta_views == 2
    stored = pq.read_table(said.predictions_url, columns=["embedding"])["embedding"]
    assert len(stored[0].as_py()) == load_model(result.model_url).card.num_features


@pytest.mark.parametrize(
    ("failures", "blamed"),
    [
        # Its gradient makes every rank fail, and another may write its failure down first.
        ([("the gradient norm is nan at step 3", "refused"), ("the loss is nan", "refused")], 1),
        ([("Connection closed by peer", "cut off"), ("out of memory", "failed")], 1),
        ([("out of memory", "failed"), ("out of memory too", "failed")], 0),
    ],
)
def test_the_rank_that_is_at_fault_is_blamed(tmp_path, failures, blamed) -> None:
    for rank, (message, kind) in enumerate(failures):
        failure = RankFailure(rank=rank, message=message, kind=kind, at=rank)
        write_failure(failure, tmp_path, str(rank))
    assert failures[blamed][0] in str(to_exception(read_failures(tmp_path)))
