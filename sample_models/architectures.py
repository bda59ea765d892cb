"""The architectures of the sample models, written as plainly as their papers describe them."""

from __future__ import annotations

from torch import Tensor, nn


class TwoLayerNet(nn.Module):
    """The two-layer ReLU network of Wolfe & Kyrillidis (2022), section 3, for 28x28 grey images.

    Input (N, 1, 28, 28), output (N, classes) logits.
    """

    def __init__(self, inputs: int = 784, hidden: int = 1024, classes: int = 10) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(inputs, hidden)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.relu(self.fc1(self.flatten(x))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016), section 4.2: 6n + 2 layers in stages of 16, 32, 64 channels.

    Input (N, 3, 32, 32), output (N, classes) logits. Shortcuts that change shape are
    1x1 convolutions (their option B).
    """

    def __init__(self, blocks_per_stage: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, blocks_per_stage, stride=1)
        self.layer2 = self._stage(16, 32, blocks_per_stage, stride=2)
        self.layer3 = self._stage(32, 64, blocks_per_stage, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.avgpool(x)))


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel, project back (Sandler et al., 2018, figure 3).

    The input is added when the shape stays. At expansion 1 there is no expanding convolution.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        expand = [_conv_bn_relu6(channels_in, hidden, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., 2018, table 2) at half width, for 32x32 images.

    Its 17 inverted residual blocks are ``features.1`` to ``features.17``, and every parameter has the
    name it has in torchvision. Two strides of the original are 1, in the stem and in ``features.4``'s
    stage, so that the last maps are 4x4; the last convolution has 256 channels in place of 1,280.
    Input (N, 3, 32, 32), output (N, classes) logits.
    """

    # Expansion, channels, blocks, stride of the first block.
    STAGES = (
        (1, 8, 1, 1),
        (6, 16, 2, 2),
        (6, 16, 3, 1),
        (6, 32, 4, 2),
        (6, 48, 3, 1),
        (6, 80, 3, 2),
        (6, 112, 1, 1),
    )

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        channels_in, last = 8, 256
        features: list[nn.Module] = [_conv_bn_relu6(3, channels_in, 3)]
        for expansion, channels, blocks, first_stride in self.STAGES:
            for stride in (first_stride, *[1] * (blocks - 1)):
                features.append(InvertedResidual(channels_in, channels, stride, expansion))
                channels_in = channels
        features.append(_conv_bn_relu6(channels_in, last, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(last, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))


def _conv_bn_relu6(
    channels_in: int, channels: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, size, stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(inplace=True),
    )
