"""Residual networks whose last block makes the embedding (FCT, section 4.1).

The last block of `layer4` has `embedding_dim` output channels, so its ReLU and the average pooling give the embedding
itself; the classifier is a bias-free 1x1 convolution over it. Parameter names are torchvision's.
"""

from collections.abc import Callable

import torch
from torch import nn

# On a CPU, the gradient of a strided 1x1 convolution in bf16 writes past its memory where there are fewer (oneDNN, with
# torch 2.11 to 2.14 at least).
MIN_CHANNELS = 16


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A "same" convolution without bias, and its batch normalisation."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)


class Block(nn.Module):
    """A residual block: its branch's output plus the input, projected where the shapes differ."""

    expansion: int
    downsample: nn.Sequential | None

    def __init__(self, inputs: int, outputs: int, stride: int, nonlin: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.nonlin = nonlin
        needs_projection = stride != 1 or inputs != outputs
        self.downsample = nn.Sequential(*conv_bn(inputs, outputs, 1, stride)) if needs_projection else None

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        raise TypeError("a block defines its own branch")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        out = self.branch(x).add_(x if self.downsample is None else self.downsample(x))
        return self.relu(out) if self.nonlin else out


class BasicBlock(Block):
    """Two 3x3 convolutions. In the embedding block both have `embedding_dim` outputs."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, outputs: int, stride: int, nonlin: bool, base_width: int) -> None:
        super().__init__(inputs, outputs, stride, nonlin)
        del planes, base_width  # bottlenecks only
        self.conv1, self.bn1 = conv_bn(inputs, outputs, 3, stride)
        self.conv2, self.bn2 = conv_bn(outputs, outputs, 3)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(Block):
    """1x1, 3x3 (with the stride), 1x1 convolutions. `base_width` 128 makes a "wide" network."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, outputs: int, stride: int, nonlin: bool, base_width: int) -> None:
        super().__init__(inputs, outputs, stride, nonlin)
        inner = planes * base_width // 64
        self.conv1, self.bn1 = conv_bn(inputs, inner, 1)
        self.conv2, self.bn2 = conv_bn(inner, inner, 3, stride)
        self.conv3, self.bn3 = conv_bn(inner, outputs, 1)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))


class ResNet(nn.Module):
    """An embedding model with a classifier.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks in each of the four stages.
        num_classes: C, outputs of the classifier.
        embedding_dim: d, channels of the embedding.
        last_nonlin: whether the embedding is made of ReLU outputs.
        stem: "imagenet" (7x7 stride 2 and max-pool) or "cifar" (3x3 stride 1, for 32 px images).
        width: factor on the channels of every layer but the embedding, which stay at least MIN_CHANNELS.
        base_width: inner channels of a bottleneck per 64 planes.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        num_classes: int,
        embedding_dim: int = 128,
        last_nonlin: bool = True,
        stem: str = "imagenet",
        width: float = 1.0,
        base_width: int = 64,
    ) -> None:
        super().__init__()
        planes = [max(MIN_CHANNELS, round(width * channels)) for channels in (64, 128, 256, 512)]
        self.conv1, self.bn1 = conv_bn(3, planes[0], *((7, 2) if stem == "imagenet" else (3, 1)))
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        stages = nn.ModuleList()
        inputs = planes[0]
        for stage, (channels, depth) in enumerate(zip(planes, depths, strict=True)):
            blocks = nn.Sequential()
            for i in range(depth):
                makes_embedding = stage == 3 and i == depth - 1
                outputs = embedding_dim if makes_embedding else channels * block.expansion
                stride = 2 if stage > 0 and i == 0 else 1
                nonlin = last_nonlin or not makes_embedding
                blocks.append(block(inputs, channels, outputs, stride, nonlin, base_width))
                inputs = outputs
            stages.append(blocks)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(embedding_dim, num_classes, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, H, W) -> logits (B, C), embedding (B, d, 1, 1)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        embedding = self.avgpool(x)  # (B, d, h, w) -> (B, d, 1, 1)
        return self.fc(embedding).flatten(1), embedding


BACKBONES: dict[str, Callable[..., ResNet]] = {
    "ResNet18": lambda **options: ResNet(BasicBlock, (2, 2, 2, 2), **options),
    "ResNet50": lambda **options: ResNet(Bottleneck, (3, 4, 6, 3), **options),
    "ResNet101": lambda **options: ResNet(Bottleneck, (3, 4, 23, 3), **options),
    "WideResNet50_2": lambda **options: ResNet(Bottleneck, (3, 4, 6, 3), base_width=128, **options),
    "WideResNet101_2": lambda **options: ResNet(Bottleneck, (3, 4, 23, 3), base_width=128, **options),
}
