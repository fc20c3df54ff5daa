"""Networks of torchvision and timm: pooled features, weights by name and by file, and what is said where there are none."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from models.backbones import PooledBackbone, backbone_arguments, build_backbone
from models.config import BackboneArch
from models.embedding import embed
from models.export import SUFFIXES, export_model
from models.model_files import describe_backbone, load_model, save_model

# One of each kind of classifier: a convolution, several layers, one, and one with auxiliary ones beside it.
FEW = ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet")
SIZES = {
    "inception_v3": 75,
    "vit_h_14": 56,
    "maxvit_t": 224,
}  # the smallest images that they take, above 64 px or below
# Where the classifier is, and how what it is given becomes the pooled features.
PLACES = {"squeezenet1_1": "classifier.1", "mobilenet_v3_small": "classifier.3", "shufflenet_v2_x0_5": "fc"}
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="no timm here")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "network" in metafunc.fixturenames:
        every = torchvision.models.list_models(module=torchvision.models)
        metafunc.parametrize("network", every if metafunc.config.getoption("--all-networks") else FEW)


def saved_and_loaded(model: PooledBackbone, arguments: dict[str, Any], path: Path) -> nn.Module:
    save_model(path, describe_backbone(model, arguments), config={}, seed=0)
    return load_model(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_network_trains_embeds_is_saved_loaded_and_exported(
    network: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    size = SIZES.get(network, 64)
    arch = BackboneArch(f"torchvision/{network}", num_classes=3, embedding_dim=8)
    arguments = backbone_arguments(arch, size)
    model = build_backbone(**arguments).train()
    assert isinstance(model, PooledBackbone)
    images, labels = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 0])
    before = model.fc.weight.detach().clone()
    F.cross_entropy(model(images)[0], labels).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    assert not torch.equal(model.fc.weight, before)
    with torch.inference_mode():
        logits, embedding = model.eval()(images)
        assert (logits.shape, embedding.shape) == ((4, 3), (4, 8, 1, 1))
        assert embedding.isfinite().all()
    loaded = saved_and_loaded(model, arguments, tmp_path / "new.pt")
    del model  # of several GB
    (tmp_path / "new.pt").unlink()
    with torch.inference_mode():
        assert torch.equal(embed(loaded, images).embedding, embedding.flatten(1))
    format_ = "pt2" if request.config.getoption("--all-networks") else "torchscript"  # which takes half the time
    export_model(loaded, (images[:2],), tmp_path / "new.pt", [format_])
    path = tmp_path / f"new{SUFFIXES[format_]}"
    exported = torch.jit.load(path) if format_ == "torchscript" else torch.export.load(path).module()
    path.unlink()
    with torch.inference_mode():
        for found, expected in zip(exported(images[:3]), (logits[:3], embedding[:3]), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
