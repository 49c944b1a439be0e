"""The view of a trainable body has its outputs and gradients, and shares its tensors."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from convolutions import Convolutions
from timm.layers.norm_act import convert_sync_batchnorm
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from pets_core.models.backbones import create_body
from pets_core.models.body_view import create_view, without_folding
from pets_core.models.classifier import Classifier
from pets_core.training.groups import set_train_mode

PHOTOS = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LARGE = [
    pytest.param("tf_efficientnet_lite0", marks=pytest.mark.slow),
    pytest.param("resnet50", marks=pytest.mark.slow),
]


class SharedNorm(nn.Module):
    """Two convolutions with one norm after both, and one with a norm of its own."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.third, self.own = nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = self.norm(self.second(self.norm(self.first(inputs)).relu())).relu()
        return self.own(self.third(inputs)).mean((2, 3))


def randomise(module: nn.Module) -> nn.Module:
    """Set statistics and weights of batch norms that fresh ones do not have."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return module


def make_model(name: str = "test_efficientnet") -> Classifier:
    """Create a model in training mode with frozen statistics, as in unfrozen epochs."""
    torch.manual_seed(0)
    body = SharedNorm() if name == "shared norm" else create_body(name, "none", 64)
    model = Classifier(randomise(body), body.num_features, 5, 0.0)
    nn.init.normal_(model.head[2].weight)
    set_train_mode(model, "frozen")
    return model


@pytest.fixture
def model() -> Classifier:
    return make_model()


def as_it_is(model: nn.Module, photos: Tensor) -> Tensor:
    with without_folding():
        return model(photos)


def loss(logits: Tensor) -> Tensor:
    return logits.square().mean()


def gradients(model: nn.Module, forward: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    loss(forward()).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def count_norms(forward: Callable[[], object]) -> int:
    with Convolutions() as recorded:
        forward()
    return recorded.num_norms


@pytest.mark.parametrize(
    ("name", "num_norms"),
    [("test_efficientnet", 0), ("convnext_atto", 0), ("shared norm", 2), ("densenet121", 62),
     *(pytest.param(*each.values, 0, marks=each.marks) for each in LARGE)],
)  # fmt: skip
def test_gradients_are_those_of_the_body(name, num_norms):
    model, photos = make_model(name).double(), PHOTOS.double()
    expected = gradients(model, lambda: as_it_is(model, photos))
    found = gradients(model, lambda: model(photos))
    for key, gradient in expected.items():
        assert (found[key] - gradient).norm() <= 1e-10 * gradient.norm(), key
    assert count_norms(lambda: model(photos)) == num_norms
    assert (model._body_for(photos) is model.body) == (name == "convnext_atto")


@pytest.mark.parametrize("name", ["test_efficientnet", "shared norm", *LARGE])
def test_ten_steps_give_the_same_weights(name):
    trained = []
    for forward in (as_it_is, lambda model, photos: model(photos)):
        model = make_model(name).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, eps=1e-5)
        for _ in range(10):
            optimizer.zero_grad()
            loss(forward(model, PHOTOS[:2].double())).backward()
            optimizer.step()
        trained.append(model.state_dict())
    for key, expected in trained[0].items():
        error = (trained[1][key].double() - expected.double()).norm()
        assert error <= 1e-9 * expected.double().norm(), key


def stored_bytes(forward: Callable[[Tensor], Tensor], photos: Tensor) -> int:
    """Return the bytes that autograd stores in a forward pass."""
    blocks = {}

    def pack(tensor: Tensor) -> Tensor:
        blocks[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = forward(photos)
    del outputs
    return sum(block.nbytes() for block in blocks.values())


def bytes_per_photo(forward: Callable[[Tensor], Tensor]) -> float:
    """Return the stored bytes that grow with the batch; weights, folded ones too, do not."""
    more = PHOTOS.repeat(2, 1, 1, 1)
    return (stored_bytes(forward, more) - stored_bytes(forward, PHOTOS)) / len(PHOTOS)


@pytest.mark.parametrize(
    ("name", "share"),
    [("test_efficientnet", 0.8), ("shared norm", 0.9),
     *(pytest.param(*each.values, 0.75, marks=each.marks) for each in LARGE)],
)  # fmt: skip
def test_view_stores_fewer_activations(name, share):
    model = make_model(name)
    unfolded = bytes_per_photo(lambda photos: as_it_is(model, photos))
    assert bytes_per_photo(model) < share * unfolded


def test_batch_norm_in_training_mode_is_not_folded(model):
    assert model._body_for(PHOTOS) is not model.body
    next(m for m in model.body.modules() if isinstance(m, nn.BatchNorm2d)).train()
    assert model._body_for(PHOTOS) is model.body
    set_train_mode(model, "frozen")
    assert model._body_for(PHOTOS) is not model.body


def test_compiled_model_is_not_folded(model, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert model._body_for(PHOTOS) is model.body


class Branch(nn.Module):
    """Adds a convolution's output to that of its norm; the last norm multiplies both by zero."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        nn.init.zeros_(self.norm2.weight)
        nn.init.ones_(self.norm2.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.conv1(inputs)
        return self.norm2(self.conv2(self.norm1(outputs) + outputs)).mean((2, 3))


def test_wrong_pair_that_fresh_norms_hide_is_not_folded():
    body = Branch().eval()
    assert create_view(body, PHOTOS).body is body


class Cached(nn.Module):
    """Caches its norm's scale for evaluation, and clears the cache in `train`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True):
        self.cache = {}
        return super().train(mode)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            return self.norm(self.conv(inputs)) * self.norm.weight.sum()
        if not self.cache:
            self.cache["scale"] = self.norm.weight.sum()
        return self.norm(self.conv(inputs)) * self.cache["scale"]


def test_module_with_its_own_train_method_is_the_bodys():
    stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    body = randomise(nn.Sequential(stem, Cached(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model = Classifier(body, 4, 2, 0.0)
    set_train_mode(model, "frozen")
    view = model._body_for(PHOTOS)
    assert view[0] is not body[0]
    assert view[1] is body[1]
    model.eval()
    with torch.no_grad():
        model(PHOTOS)
    model.train()
    set_train_mode(model, "frozen")
    body[1].norm.weight.data.mul_(2)
    model.eval()
    torch.testing.assert_close(model.body(PHOTOS), model._body_for(PHOTOS)(PHOTOS))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224", "efficientvit_m0"])
def test_gradients_with_cached_attention_biases(name):
    torch.manual_seed(0)
    body = randomise(create_body(name, "none", 224))
    model, photos = (
        Classifier(body, body.num_features, 5, 0.0).double(),
        torch.randn(2, 3, 224, 224),
    )
    photos = photos.double()
    nn.init.normal_(model.head[2].weight)
    for _ in range(2):
        model.train()
        set_train_mode(model, "frozen")
        torch.manual_seed(0)
        expected = gradients(model, lambda: as_it_is(model, photos))
        torch.manual_seed(0)
        found = gradients(model, lambda: model(photos))
        # Attention biases are ill-conditioned: their gradients are 1e-7 of the others.
        rounding = 1e-14 * torch.stack([each.norm() for each in expected.values()]).norm()
        for key, gradient in expected.items():
            assert (found[key] - gradient).norm() <= 1e-10 * gradient.norm() + rounding, key
        torch.optim.SGD(model.parameters(), lr=1e-3).step()
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(model(photos), as_it_is(model, photos))


class Dropping(nn.Sequential):
    """Container whose output depends on its own mode."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(inputs), 0.9, self.training)


def test_view_follows_the_modes_of_the_body():
    block = Dropping(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    body = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(randomise(body), 4, 2, 0.0)
    nn.init.normal_(model.head[2].weight)
    for mode in (False, True, False):
        set_train_mode(model, "frozen")
        block.training = mode
        assert torch.equal(model.embed(PHOTOS), model.embed(PHOTOS)) != mode


def test_state_dict_and_parameters_do_not_change(model):
    names, weights = list(model.state_dict()), dict(model.named_parameters())
    modules = [name for name, _ in model.named_modules()]
    model(PHOTOS)
    assert list(model.state_dict()) == names
    assert [name for name, _ in model.named_modules()] == modules
    assert all(weight is weights[name] for name, weight in model.named_parameters())


@pytest.mark.parametrize(
    "make_copy",
    [copy.deepcopy, lambda model: ModelEmaV3(model).module,
     lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "ema", "pickle"],
)  # fmt: skip
def test_copies_share_no_tensors(model, make_copy):
    model(PHOTOS)
    copied = make_copy(model)
    assert not copied._view._views, "copies of a view would take memory"
    set_train_mode(copied, "frozen")
    before = copied(PHOTOS)
    assert copied._body_for(PHOTOS) is not model._body_for(PHOTOS)
    with torch.no_grad():
        torch._foreach_mul_(list(model.parameters()), 1.5)
    assert torch.equal(copied(PHOTOS), before)
    loss(copied(PHOTOS)).backward()
    assert all(weight.grad is not None for weight in copied.parameters())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("change", ["step", "assign", "dtype", "data", "module", "buffer"])
def test_view_is_never_stale(model, change):
    photos, first = PHOTOS.double(), model(PHOTOS)
    state = {k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    conv, norm = model.body.conv_stem, model.body.bn1
    with torch.no_grad():
        if change == "step":
            torch._foreach_mul_(list(model.parameters()), 1.5)
        elif change == "assign":
            model.load_state_dict(state, assign=True)
        elif change == "data":
            conv.weight.data = conv.weight.data * 3
        elif change == "module":
            model.body.conv_stem = nn.Conv2d(3, conv.out_channels, 3, 2, 1)
        elif change == "buffer":
            norm.running_mean = norm.running_mean + 1
    model.double()
    set_train_mode(model, "frozen")
    second = model(photos)
    assert (change == "dtype") == torch.allclose(first.double(), second, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second, as_it_is(model, photos), rtol=1e-10, atol=1e-12)
    found = gradients(model, lambda: model(photos))
    assert all(gradient is not None for gradient in found.values())


def test_norms_converted_after_a_pass_are_not_folded(model):
    model(PHOTOS)
    model.body = convert_sync_batchnorm(model.body)
    assert model._body_for(PHOTOS) is model.body


@pytest.fixture
def process_group(tmp_path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_gradients_reach_ddp(model, process_group):
    expected = gradients(model, lambda: as_it_is(model, PHOTOS))
    model.zero_grad(set_to_none=True)
    wrapped, reduced = DistributedDataParallel(model), []

    def reduce(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        reduced.append(bucket.buffer().numel())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, reduce)
    for _ in range(2):
        found = gradients(model, lambda: wrapped(PHOTOS))
    for key, gradient in expected.items():
        assert (found[key] - gradient).norm() <= 1e-4 * gradient.norm(), key
    assert sum(reduced) == 2 * sum(weight.numel() for weight in model.parameters())


def relative_errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> Tensor:
    """Return the relative error of each parameter's gradient."""
    return torch.stack([(found[k] - g).norm() / g.norm() for k, g in expected.items()])


@pytest.mark.parametrize("name", ["test_efficientnet", *LARGE])
def test_rounding_under_autocast_is_that_of_the_body(name):
    """In bf16, the gradients of both forms differ from those in fp32 by rounding."""
    model = make_model(name)
    exact = gradients(model, lambda: as_it_is(model, PHOTOS))
    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients(model, lambda: as_it_is(model, PHOTOS))
        folded = gradients(model, lambda: model(PHOTOS))
    errors, plain_errors = relative_errors(folded, exact), relative_errors(plain, exact)
    assert errors.median() < 1.5 * plain_errors.median()
    assert errors.max() < 1.5 * plain_errors.max()


def convolutions(forward: Callable[[], Tensor]) -> set[tuple[str, bool, torch.dtype]]:
    with torch.autocast("cpu", torch.bfloat16):
        forward()  # The verification of a view computes in float64.
    with Convolutions() as recorded, torch.autocast("cpu", torch.bfloat16):
        outputs = forward()
        if outputs.requires_grad:
            loss(outputs).backward()
    return set(recorded.seen)


BF16_ELSEWHERE = {("forward", False, torch.bfloat16), ("backward", False, torch.bfloat16)}


@pytest.mark.parametrize("name", ["test_efficientnet", "convnext_atto", "shared norm"])
def test_trained_depthwise_convolutions_are_fp32_under_autocast(name):
    model = make_model(name)
    assert convolutions(lambda: model(PHOTOS)) == BF16_ELSEWHERE | {
        ("forward", True, torch.float32), ("backward", True, torch.float32),
    }  # fmt: skip
    assert convolutions(lambda: as_it_is(model, PHOTOS)) == BF16_ELSEWHERE | {
        ("forward", True, torch.bfloat16), ("backward", True, torch.bfloat16),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["test_efficientnet", "convnext_atto"])
def test_depthwise_convolutions_without_weight_gradients_are_bf16_under_autocast(name):
    model = make_model(name)
    bf16 = {("forward", False, torch.bfloat16), ("forward", True, torch.bfloat16)}
    with torch.no_grad():
        assert convolutions(lambda: model(PHOTOS)) == bf16
    for name, weight in model.body.named_parameters():
        weight.requires_grad_(name.startswith(("conv_head", "norm_pre", "head")))
    assert ("forward", True, torch.float32) not in convolutions(lambda: model(PHOTOS))
    model.body.requires_grad_(False).eval()
    assert convolutions(lambda: model(PHOTOS)) == bf16


def test_grouped_convolutions_are_bf16_under_autocast():
    body = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert create_view(body, torch.ones(1, 4, 8, 8), depthwise_in_fp32=True).body is body


def test_depthwise_convolutions_return_the_dtype_of_autocast():
    conv = nn.Conv2d(3, 6, 3, groups=3)
    body = nn.Sequential(conv)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = create_view(body, PHOTOS, depthwise_in_fp32=True).body(PHOTOS)
    assert outputs.dtype == torch.bfloat16
    assert torch.equal(outputs, conv(PHOTOS).bfloat16())


def test_convolutions_are_fp32_without_autocast(model):
    model(PHOTOS)
    with Convolutions() as recorded:
        loss(model(PHOTOS)).backward()
    assert {dtype for *_, dtype in recorded.seen} == {torch.float32}


def test_random_state_does_not_change(model):
    before = torch.get_rng_state()
    assert model._body_for(PHOTOS) is not model.body
    assert torch.equal(torch.get_rng_state(), before)


def test_empty_share_has_zero_gradients(model):
    found = gradients(model, lambda: model(PHOTOS[:0]).sum()[None])
    assert all(gradient is not None and not gradient.any() for gradient in found.values())
