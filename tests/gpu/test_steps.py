"""Training steps on a GPU: results of a CPU, no synchronisation, non-finite values."""

import io
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from timm import create_model
from torch import nn

from pets_core.config.launch import LaunchConfig
from pets_core.config.train import TransformConfig
from pets_core.data.ingest.images import decode
from pets_core.data.loading.jpeg import decode_squares
from pets_core.data.loading.transforms import draw_maps, sampling_grid
from pets_core.errors import PetsError
from pets_core.models.body_view import without_folding
from pets_core.models.classifier import Classifier
from pets_core.models.folding import fold
from pets_core.targets.regression.objective import Regression
from pets_core.training.checkpoint import TrainingPosition
from pets_core.training.devices import choose_device, resolve_precision
from pets_core.training.groups import set_train_mode
from pets_core.training.history import History
from pets_core.training.loop import train_epoch, train_step
from pets_core.training.schedule import OneCycle
from pets_core.training.state import TrainState, _with_integers
from pets_core.training.step_metrics import StepRows

pytestmark = pytest.mark.gpu

TRANSFORMERS = ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"]


def test_device_precision_and_flags(parts, tf32):
    tf32(True)
    device = choose_device(LaunchConfig())
    assert device.type == parts.device.type
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    if parts.on_gpu:
        is_ampere = torch.cuda.get_device_capability() >= (8, 0)
        assert resolve_precision("auto", device) == ("bf16" if is_ampere else "fp16")
        assert parts.accelerator("no").device.type == "cuda"


def test_augmentation_matches_the_cpu(parts, tf32):
    tf32(True)
    maps = draw_maps(64, 0.8, TransformConfig(), torch.Generator().manual_seed(0))
    found = sampling_grid(maps.to(parts.device), parts.size).cpu()
    pixels = (found - sampling_grid(maps, parts.size)).abs().max() * parts.photo_size / 2
    assert pixels < 0.005, "matrices are multiplied in TF32"
    photos = parts.photos(64)
    one, other = (
        next(parts.loader(photos, device=device).epoch(0)).inputs.cpu()
        for device in (torch.device("cpu"), parts.device)
    )
    assert (one - other).abs().mean() < 1e-3


@pytest.mark.parametrize("targets", ["class", "box"])
def test_step_does_not_synchronise_with_the_host(parts, targets):
    photos, objective, num_outputs = parts.photos(parts.batch_size * 6), None, 37
    if targets == "box":
        photos.targets = np.tile(np.array([-0.5, -0.5, 0.5, 0.5], np.float32), (len(photos), 1))
        objective, num_outputs = Regression((-1.2, 1.2)), 4
    train = parts.loader(photos, targets=targets)
    accelerator = parts.accelerator(parts.precision)
    model = parts.model(num_outputs=num_outputs)
    prepared = parts.prepared(model, train, accelerator, objective)
    batches = train.epoch(0)
    for _ in range(3):
        train_step(prepared, next(batches))
    parts.synchronize()
    if parts.on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    for _ in range(2):
        train_step(prepared, next(batches))


@pytest.mark.parametrize(("precision", "close"), [("no", 1e-3), ("bf16", 3e-2), ("fp16", 3e-2)])
def test_losses_match_the_cpu(parts, tf32, precision, close):
    if precision == "fp16" and not parts.on_gpu:
        pytest.skip("CPUs do not train in fp16")
    tf32(False)
    losses = []
    for device, used in ((torch.device("cpu"), "no"), (parts.device, precision)):
        train = parts.loader(parts.photos(96), batch_size=16, device=device)
        accelerator = parts.accelerator(used, device)
        model = parts.model("test_resnet", device=device)
        history = History()
        prepared = parts.prepared(model, train, accelerator, rate=1e-3)
        train_epoch(prepared, train, history, OneCycle(6))
        losses.append([row["loss"] for row in history.rows])
    assert losses[1] == pytest.approx(losses[0], rel=close)


def test_non_finite_step_changes_nothing_and_is_named(parts):
    train, accelerator = (
        parts.loader(parts.photos(parts.batch_size)),
        parts.accelerator(parts.precision),
    )
    model = parts.model("test_resnet")
    prepared, batch = parts.prepared(model, train, accelerator), next(train.epoch(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch.inputs[0] = float("inf")
    loss, norm = train_step(prepared, batch)
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value), name
    rows = StepRows([], 41, 1, accelerator)

    def add_step() -> None:
        rows.add(loss, norm, batch.ids, {0: 1e-3}, {}, batch.global_size)
        rows.fill()

    with pytest.raises(PetsError, match="step 41"):
        add_step()


def test_steps_after_a_snapshot_do_not_change_it(parts):
    train, accelerator = parts.loader(parts.photos(256)), parts.accelerator(parts.precision)
    model = parts.model()
    prepared = parts.prepared(model, train, accelerator, rate=1e-2)
    batches = train.epoch(0)
    train_step(prepared, next(batches))
    expected = {f"model.{k}": v.cpu().clone() for k, v in model.state_dict().items()}
    snapshot = TrainState(model, None, History(), accelerator).snapshot(
        prepared.optimizer.optimizer, 0.0
    )
    for batch in batches:
        train_step(prepared, batch)
    if snapshot.ready:
        snapshot.ready.synchronize()
    for name, value in expected.items():
        assert torch.equal(snapshot.tensors[name], value), name
    changed = model.state_dict()["head.2.weight"].cpu()
    assert not torch.equal(changed, expected["model.head.2.weight"])


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_device_decodes_jpegs_like_pillow(parts):
    files = []
    for number in range(8):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90, progressive=number % 2 == 1)
        files.append(file.getvalue())
    squares = decode_squares(files, parts.photo_size, parts.device)
    assert squares.device.type == parts.device.type
    for file, square in zip(files, squares.cpu().numpy(), strict=True):
        difference = square.astype(int) - decode(file, parts.photo_size).astype(int)
        assert np.abs(difference).mean() < 4


def test_gradient_scaler_state_is_restored(parts):
    scaler = torch.amp.GradScaler(parts.device.type)
    weight = nn.Parameter(torch.ones(3, device=parts.device))
    optimizer = torch.optim.AdamW([weight], fused=True)

    def step(scaler: torch.amp.GradScaler) -> None:
        scaler.scale((weight * 2).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    step(scaler)
    position = TrainingPosition.model_validate_json(
        TrainingPosition(scaler=scaler.state_dict()).model_dump_json()
    )
    resumed = torch.amp.GradScaler(parts.device.type)
    resumed.load_state_dict(_with_integers(position.scaler))
    step(resumed)


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", *TRANSFORMERS])
def test_rank_without_samples_has_zero_gradients(parts, name):
    body = create_model(name, pretrained=False, num_classes=0)
    side = body.default_cfg["input_size"][1]
    model = Classifier(body, body.num_features, 37, 0.0).to(parts.device)
    with torch.autocast(parts.device.type, torch.bfloat16):
        logits = model(torch.zeros(0, 3, side, side, device=parts.device))
    targets = torch.zeros(0, dtype=torch.long, device=parts.device)
    nn.functional.cross_entropy(logits.float(), targets, reduction="sum").backward()
    for parameter in model.parameters():
        assert parameter.grad is not None, "DDP would wait for it"
        assert not parameter.grad.any()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet50", "tf_efficientnet_lite0"])
def test_folded_body_gives_the_same_outputs(parts, name, dtype):
    model = parts.model(name).eval().requires_grad_(False)
    for module in model.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    photos = torch.randn(8, 3, parts.size, parts.size, device=parts.device)
    photos = photos.contiguous(memory_format=torch.channels_last)
    assert fold(model.body, photos[:1]) is not model.body
    with torch.no_grad(), torch.autocast(parts.device.type, dtype, enabled=dtype is not None):
        expected, found = model.body(photos).float(), model.embed(photos).float()
    assert (found - expected).norm() < 3e-2 * expected.norm()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet50", "tf_efficientnet_lite0"])
def test_trained_body_with_folded_norms_gives_the_same_gradients(parts, tf32, name, dtype):
    tf32(False)
    model = parts.model(name)
    set_train_mode(model, "frozen")
    nn.init.normal_(model.head[-1].weight, std=0.1)
    photos = torch.randn(8, 3, parts.size, parts.size, device=parts.device)
    photos = photos.contiguous(memory_format=torch.channels_last)
    assert model._body_for(photos) is not model.body

    def gradient(context: AbstractContextManager[None], dtype: torch.dtype | None) -> torch.Tensor:
        model.zero_grad()
        with context, torch.autocast(parts.device.type, dtype, enabled=dtype is not None):
            logits = model(photos)
        logits.float().square().mean().backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters()])

    exact = gradient(without_folding(), None)
    plain, folded = (gradient(each, dtype) for each in (without_folding(), nullcontext()))
    # In bf16 both differ from fp32 by rounding.
    assert (folded - exact).norm() < 1.5 * (plain - exact).norm() + 1e-3 * exact.norm()
