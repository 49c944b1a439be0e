"""Host copies of tensors, and the safetensors file written from them."""

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import given

from pets_core.training import host_copy
from pets_core.training.host_copy import copy_to_host, safetensors_chunks

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
SHAPES = st.lists(st.integers(0, 5), max_size=4)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6))
def test_written_copies_are_read_back_unchanged(drawn):
    tensors = {
        f"tensor-{number} ü": (torch.randn(shape) * 9).to(dtype)
        for number, (dtype, shape) in enumerate(drawn)
    }
    copied, ready = copy_to_host(tensors)
    assert ready is None
    found = safetensors.torch.load(b"".join(safetensors_chunks(copied)))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_copies_are_contiguous_and_independent(monkeypatch):
    monkeypatch.setattr(host_copy, "_CHUNK_BYTES", 100)
    weight = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    before = weight.clone()
    copied, _ = copy_to_host({"weight": weight, "step": torch.tensor(3.0)})
    weight.zero_()
    assert copied["weight"].is_contiguous()
    assert torch.equal(copied["weight"], before)
    chunks = list(safetensors_chunks(copied))
    assert max(len(chunk) for chunk in chunks[1:]) == 100
    assert torch.equal(safetensors.torch.load(b"".join(chunks))["weight"], before)


def test_dtype_unknown_to_safetensors_is_an_error():
    with pytest.raises(KeyError):
        list(safetensors_chunks({"complex": torch.ones(2, dtype=torch.complex64)}))
