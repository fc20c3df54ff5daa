"""Networks of torchvision and timm: pooled features, weights by name and by file, and what is refused."""

import importlib.util
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from models.backbones import PooledBackbone, backbone_arguments, build_backbone
from models.config import BackboneArch
from models.embedding import embed
from models.export import export_model
from models.libraries import library_features, library_preprocessing
from models.model_files import describe_backbone, load_model, save_model
from utils import extras
from utils.config import build
from utils.errors import UserError

# One of each kind of classifier: a convolution, several layers, one, and one with auxiliary ones beside it.
FEW = ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "googlenet")
SIZES = {"inception_v3": 75, "vit_h_14": 56, "maxvit_t": 224}  # of images, where 64 px are too few, or do not go
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="no timm here")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "network" in metafunc.fixturenames:
        every = torchvision.models.list_models(module=torchvision.models)
        by_size = sorted(every, key=lambda name: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])
        metafunc.parametrize("network", by_size if metafunc.config.getoption("--all-networks") else FEW)


def saved_and_loaded(model: PooledBackbone, arguments: dict[str, Any], path: Path) -> nn.Module:
    save_model(path, describe_backbone(model, arguments), config={}, seed=0)
    return load_model(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_network_trains_embeds_is_saved_loaded_and_exported(network: str, tmp_path: Path) -> None:
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
    export_model(loaded, (images[:2],), tmp_path / "new.pt", ["torchscript"])
    exported = torch.jit.load(tmp_path / "new.torchscript.pt")
    (tmp_path / "new.torchscript.pt").unlink()
    with torch.inference_mode():
        for found, expected in zip(exported(images[:3]), (logits[:3], embedding[:3]), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def features_of(plain: nn.Module, classifier: str, images: torch.Tensor) -> torch.Tensor:
    """What a network as the library builds it gives to its last layer."""
    given: list[torch.Tensor] = []
    plain.get_submodule(classifier).register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.inference_mode():
        plain.eval()(images)
    return given[0]


def plain_network(name: str) -> nn.Module:
    """With statistics of batch normalisation that matter."""
    options = {"init_weights": False} if name == "googlenet" else {}
    plain = torchvision.models.get_model(name, **options)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"), std=0.1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    return plain


@pytest.mark.parametrize(
    ("name", "classifier"), [("mobilenet_v3_small", "classifier.3"), ("shufflenet_v2_x0_5", "fc"), ("googlenet", "fc")]
)
def test_features_are_what_the_librarys_classifier_is_given_with_weights_from_wherever(
    name: str, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the library's own loader, which finds them downloaded, and from files."""
    torch.manual_seed(0)
    state = plain_network(name).state_dict()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.get_model_weights(name)["DEFAULT"]
    downloaded = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    downloaded.parent.mkdir(parents=True)
    torch.save(state, downloaded)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "training.pth")
    save_file(state, tmp_path / "w.safetensors")
    expected = features_of(torchvision.models.get_model(name, weights="DEFAULT"), classifier, IMAGES)
    for given in ("DEFAULT", "IMAGENET1K_V1", str(tmp_path / "training.pth"), str(tmp_path / "w.safetensors")):
        features = library_features(f"torchvision/{name}", given, None, where="w")
        with torch.inference_mode():
            found = features.module.eval()(IMAGES)
        assert found.shape[1] == features.dim
        torch.testing.assert_close(found, expected)


def test_a_classifier_of_convolutions_leaves_the_pooled_maps() -> None:
    features = library_features("torchvision/squeezenet1_1", None, None, where="w")
    with torch.inference_mode():
        maps = features.module.get_submodule("features").eval()(IMAGES)
        torch.testing.assert_close(features.module.eval()(IMAGES), maps.mean((2, 3)))  # which ReLUs have made
    assert features.dim == maps.shape[1]


def test_without_a_projection_the_features_are_the_embedding() -> None:
    model = build_backbone("torchvision/squeezenet1_1", num_classes=3, embedding_dim=None).eval()
    assert isinstance(model, PooledBackbone)
    with torch.inference_mode():
        logits, embedding = model(IMAGES)
        assert torch.equal(embedding.flatten(1), model.features(IMAGES))
        torch.testing.assert_close(logits, embedding.flatten(1) @ model.fc.weight.flatten(1).T)


def test_the_images_that_a_network_is_made_for_are_those_of_its_weights() -> None:
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    vit = {"image_size": 384, **imagenet, "interpolation": "bicubic"}
    assert library_preprocessing("torchvision/vit_b_16", "IMAGENET1K_SWAG_E2E_V1", where="w") == vit
    assert library_preprocessing("torchvision/vit_b_16", None, where="w")["image_size"] == 224
    assert library_preprocessing("torchvision/inception_v3", "mine.pth", where="w")["image_size"] == 299


@needs_timm
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])  # one that is built for a size, one that is not
def test_a_network_of_timm(name: str, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    plain: Any = timm.create_model(name, img_size=64) if name == "test_vit" else timm.create_model(name)
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    model = build_backbone(
        f"timm/{name}", num_classes=3, embedding_dim=None, weights=str(tmp_path / "w.pth"), image_size=64
    ).eval()
    assert isinstance(model, PooledBackbone)
    with torch.inference_mode():
        expected = plain.eval().forward_head(plain.forward_features(IMAGES), pre_logits=True)
        torch.testing.assert_close(model(IMAGES)[1].flatten(1), expected)
    wanted = library_preprocessing(f"timm/{name}", None, where="w")
    assert (wanted["image_size"], wanted["interpolation"]) == (160, "bicubic")
    arguments = {"arch": f"timm/{name}", "num_classes": 3, "embedding_dim": None, "image_size": 64}
    loaded = saved_and_loaded(model, arguments, tmp_path / "new.pt")
    assert torch.equal(embed(loaded, IMAGES).embedding, embed(model, IMAGES).embedding)


@needs_timm
def test_names_that_timm_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"w: timm has no network 'resnet19'; names like it: resnet18, "):
        library_features("timm/resnet19", None, None, where="w")
    with pytest.raises(UserError, match=r"w: timm/resnet18: weights: unknown 'x'; \(choices: DEFAULT, a1_in1k, "):
        library_features("timm/resnet18", "x", None, where="w")


def test_timm_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"^arch_params\.arch: needs timm, which is not here: pip install timm$"):
        build_backbone("timm/resnet18", num_classes=3)


@pytest.mark.parametrize(
    ("arch", "weights", "refusal"),
    [
        ("torchvision/resnet19", None, r"torchvision has no network 'resnet19'; names like it: resnet18, "),
        ("torchvision/maskrcnn_resnet50_fpn", None, r"torchvision has no network 'maskrcnn"),  # no classification
        (
            "torchvision/mobilenet_v2",
            "V3",
            r"torchvision/mobilenet_v2: weights: unknown 'V3'; \(choices: DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2\)",
        ),
        (
            "torchvision/vit_b_32",
            None,
            r"torchvision/vit_b_32: cannot be built \(Input shape indivisible",
        ),
    ],
)
def test_what_a_library_does_not_have_is_refused(arch: str, weights: str | None, refusal: str) -> None:
    with pytest.raises(UserError, match=rf"^arch_params\.arch: {refusal}"):
        build_backbone(arch, num_classes=3, weights=weights, image_size=65)


def test_a_download_that_fails_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"w: torchvision/resnet18: the weights DEFAULT cannot be downloaded \("):
        library_features("torchvision/resnet18", "DEFAULT", None, where="w")


def test_weights_of_another_network_and_files_that_are_none(tmp_path: Path) -> None:
    def refusal_of(content: Any) -> str:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match=r"^w: torchvision/squeezenet1_1: ") as refused:
            library_features("torchvision/squeezenet1_1", str(tmp_path / "w.pth"), None, where="w")
        return str(refused.value)

    state = plain_network("squeezenet1_1").state_dict()
    others = plain_network("shufflenet_v2_x0_5").state_dict()
    assert "another architecture: it lacks features.0.weight, it has conv1.0.weight beyond them" in refusal_of(others)
    misshapen = {**state, "features.0.weight": torch.zeros(1, 2)}
    assert "features.0.weight is (1, 2), not (64, 3, 3, 3)" in refusal_of(misshapen)
    assert "holds no state dict" in refusal_of([1, 2])
    assert "cannot be read" in refusal_of(nn.Linear(1, 1))  # a pickle of code
    (tmp_path / "w.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"w\.safetensors cannot be read \("):
        library_features("torchvision/squeezenet1_1", str(tmp_path / "w.safetensors"), None, where="w")


@pytest.mark.parametrize(
    ("values", "refusal"),
    [
        ({"arch": "ResNet18", "weights": "DEFAULT"}, r"weights: is for the networks of a library"),
        ({"arch": "ResNet18", "embedding_dim": None}, r"embedding_dim: ResNet18 needs a number"),
        ({"arch": "torchvision/resnet18", "stem": "cifar"}, r"stem: is not for torchvision/resnet18; leave it out"),
    ],
)
def test_keys_that_are_not_for_an_architecture(values: dict[str, Any], refusal: str) -> None:
    with pytest.raises(UserError, match=rf"^x\.yaml: arch_params\.{refusal}"):
        build(BackboneArch, {"num_classes": 3, **values}, source="x.yaml", prefix="arch_params.")
