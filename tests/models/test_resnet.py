"""Backbones: the published sizes, and torchvision's own networks as the oracle for their arithmetic."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from models.backbones import build_backbone
from models.resnet import BACKBONES, MIN_CHANNELS, ResNet
from utils.errors import UserError

PARAMETERS = {
    "ResNet18": 7_272_256,
    "ResNet50": 22_796_352,
    "WideResNet50_2": 65_139_520,
    "WideResNet101_2": 123_142_976,
}


def oracle_for(arch: str, *, num_classes: int, embedding_dim: int) -> torchvision.models.ResNet:
    """torchvision's network with the last block and the classifier that the paper describes."""
    network = getattr(torchvision.models, arch.lower().replace("wideresnet", "wide_resnet"))(num_classes=num_classes)
    block: Any = network.layer4[-1]
    inputs = block.conv1.in_channels

    def conv(channels: int, kernel: int) -> nn.Conv2d:
        return nn.Conv2d(channels, embedding_dim, kernel, padding=kernel // 2, bias=False)

    if hasattr(block, "conv3"):
        block.conv3, block.bn3 = conv(block.conv2.out_channels, 1), nn.BatchNorm2d(embedding_dim)
    else:
        block.conv1, block.bn1 = conv(inputs, 3), nn.BatchNorm2d(embedding_dim)
        block.conv2, block.bn2 = conv(embedding_dim, 3), nn.BatchNorm2d(embedding_dim)
    if inputs != embedding_dim:
        block.downsample = nn.Sequential(conv(inputs, 1), nn.BatchNorm2d(embedding_dim))
    network.fc = nn.Linear(embedding_dim, num_classes, bias=False)
    return network


def randomise_statistics(model: nn.Module) -> None:
    """Make every BN layer do something: fresh ones are nearly the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, mean, spread in (("weight", 1, 0.2), ("bias", 0, 0.1), ("running_mean", 0, 0.1)):
                nn.init.normal_(getattr(module, name), mean, spread)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)


@pytest.mark.parametrize("arch", sorted(BACKBONES))
def test_every_architecture_has_torchvisions_names_and_the_published_size(arch: str) -> None:
    with torch.device("meta"):  # shapes only
        model = build_backbone(arch, num_classes=100)
        expected = oracle_for(arch, num_classes=100, embedding_dim=128)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes.pop("fc.weight") == (100, 128, 1, 1)
    assert shapes == {name: tensor.shape for name, tensor in expected.state_dict().items() if name != "fc.weight"}
    if arch in PARAMETERS:
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("arch", ["ResNet18", "ResNet50"])
def test_the_same_weights_give_torchvisions_activations(arch: str) -> None:
    """And without the last ReLU, `last_nonlin`, what it would have taken."""
    torch.manual_seed(0)
    model = build_backbone(arch, num_classes=10, embedding_dim=24).eval()
    randomise_statistics(model)
    oracle = oracle_for(arch, num_classes=10, embedding_dim=24).eval()
    linear = build_backbone(arch, num_classes=10, embedding_dim=24, last_nonlin=False).eval()
    weights = model.state_dict()
    oracle.load_state_dict({**weights, "fc.weight": weights["fc.weight"].flatten(1)})
    linear.load_state_dict(weights)
    activations: dict[str, list[torch.Tensor]] = {}
    stages = ("maxpool", "layer1", "layer2", "layer3", "layer4")
    for network in (model, oracle, linear):
        for name in stages:
            network.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: activations.setdefault(name, []).append(output)
            )
    images = torch.randn(1, 3, 64, 64)  # a single image keeps its batch dimension
    with torch.inference_mode():
        (logits, embedding), expected, (_, unrectified) = model(images), oracle(images), linear(images)
    free = activations["layer4"].pop()
    assert (free < 0).any()
    torch.testing.assert_close(unrectified, free.mean((2, 3), keepdim=True))
    torch.testing.assert_close(activations["layer4"][1], free.relu())
    for name in stages:
        torch.testing.assert_close(*activations[name][:2])
    torch.testing.assert_close(logits, expected)
    assert embedding.shape == (1, 24, 1, 1)
    torch.testing.assert_close(logits, embedding.flatten(1) @ weights["fc.weight"].flatten(1).T)


@pytest.mark.parametrize(
    ("stem", "size", "sides"),
    [("imagenet", 64, [16, 8, 4, 2]), ("cifar", 32, [32, 16, 8, 4]), ("cifar", 28, [28, 14, 7, 4])],
)
def test_spatial_sizes_of_the_stems_and_gradients_of_every_parameter(stem: str, size: int, sides: list[int]) -> None:
    model = build_backbone("ResNet18", num_classes=5, embedding_dim=8, width=0.125, stem=stem)
    assert isinstance(model, ResNet)
    seen: list[tuple[int, ...]] = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
    model(torch.randn(4, 3, size, size))[0].square().sum().backward()
    assert seen == [(side, side) for side in sides]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("arch", "expansion", "inner"), [("ResNet18", 1, 32), ("ResNet50", 4, 32), ("WideResNet50_2", 4, 64)]
)
def test_width_scales_every_layer_but_the_embedding(arch: str, expansion: int, inner: int) -> None:
    model = build_backbone(arch, num_classes=5, embedding_dim=128, width=0.5)
    assert isinstance(model, ResNet)
    assert model.conv1.out_channels == 32
    assert model.get_parameter("layer1.0.conv1.weight").shape[0] == inner
    assert model.layer1(torch.randn(2, 32, 8, 8)).shape[1] == 32 * expansion
    assert model.get_parameter("layer4.1.conv1.weight").shape[1] == 256 * expansion
    assert model.fc.in_channels == 128


def test_no_layer_is_too_narrow_for_bf16_on_a_cpu() -> None:
    model = build_backbone("ResNet18", num_classes=5, embedding_dim=8, width=1 / 64)
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1) and m is not model.conv1]
    assert min(m.in_channels for m in strided) == MIN_CHANNELS
    with torch.autocast("cpu", torch.bfloat16):  # with fewer channels, this aborts the process where bf16 is native
        model(torch.randn(4, 3, 32, 32))[0].float().square().sum().backward()


def test_an_unknown_architecture_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"arch_params\.arch: unknown 'Resnet50'; did you mean ResNet50\?"):
        build_backbone("Resnet50", num_classes=5)
