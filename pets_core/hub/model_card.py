"""Card of a model on the Hub: README.md with the metadata that the Hub reads."""

from __future__ import annotations

import re
from typing import Any

import timm
import yaml

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.hub.address import HubAddress
from pets_core.hub.page import README, format_page
from pets_core.models.backbones import timm_name
from pets_core.models.card import ModelCard
from pets_core.records.target_spec import target_spec

__all__ = ["model_page"]

_FRONT_MATTER = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)

_USE_MODEL = """
## Use

With pets-pipeline, which returns labels and probabilities:

```python
import pets

model = pets.load("{address}")
```

With timm only. The backbone returns pooled features (B, {num_features}); the head is layer
normalisation and one linear layer, because timm has no model with this head:

```python
import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

body = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
head = torch.nn.Sequential(
    torch.nn.LayerNorm({num_features}),
    torch.nn.Dropout(0.0),
    torch.nn.Linear({num_features}, {num_outputs}),
)
head.load_state_dict(load_file(hf_hub_download("{repo_id}", "head.safetensors")))
head.eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(body))


def logits(image):
    with torch.inference_mode():
        return head(body(transform(image.convert("RGB")).unsqueeze(0)))
```
"""


def model_page(model_url: str, card: ModelCard, address: HubAddress, license_id: str | None) -> str:
    """Return the card of a model: that of its evaluation, if there is one, and how to use it.

    Args:
        model_url: Model folder.
        card: Card of the model.
        address: Repository.
        license_id: Licence, as the Hub names it; None: the field is omitted.
    """
    metadata, text = _read_page(storage.join(model_url, README))
    name = address.repo_id.partition("/")[2]
    title = f"# {name}\n\nA `{card.backbone}` model that was not evaluated.\n"
    if target_spec(card.targets).is_label:
        metadata.setdefault("pipeline_tag", "image-classification")
    tags = dict.fromkeys([*metadata.get("tags", ()), "timm", "pets-pipeline"])
    metadata |= {"library_name": "timm", "tags": list(tags)}
    # The Hub accepts addresses of repositories only.
    metadata.pop("base_model", None)
    pretrained = timm.get_pretrained_cfg(timm_name(card.backbone))
    if pretrained is not None and (pretrained.hf_hub_id or "").count("/") == 1:
        metadata["base_model"] = pretrained.hf_hub_id
    if results := metadata.get("model-index"):
        metadata["datasets"] = [results[0]["results"][0]["dataset"]["name"]]
    if license_id:
        metadata["license"] = license_id
    use = _USE_MODEL.format(
        address=address,
        repo_id=address.repo_id,
        num_features=card.num_features,
        num_outputs=card.num_outputs,
    )
    return format_page(metadata, (text or title) + use)


def _read_page(url: str) -> tuple[dict[str, Any], str]:
    """Return metadata and text of a page; both are empty if there is none."""
    if not storage.exists(url):
        return {}, ""
    page = storage.read_bytes(url).decode()
    found = _FRONT_MATTER.match(page)
    try:
        metadata = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise PetsError(f"{url}: its metadata is damaged YAML: correct or remove it") from error
    # A pulled model has the section of its earlier repository.
    text = page[found.end() if found else 0 :].partition("\n## Use\n")[0]
    return (metadata if isinstance(metadata, dict) else {}), text
