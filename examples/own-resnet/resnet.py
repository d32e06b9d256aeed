"""A ResNet with BatchNorm and augmentation, as somebody brings one along."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Augmented(nn.Module):
    """Moves training images by up to some pixels, and mirrors half of them."""

    def __init__(self, pixels: int, mirror: bool) -> None:
        super().__init__()
        self.pixels, self.mirror = pixels, mirror

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        size = images.shape[-2:]
        padded = F.pad(images, [self.pixels] * 4)
        down, right = torch.randint(0, 2 * self.pixels + 1, (2, len(images))).unbind()
        moved = [
            image[:, y : y + size[0], x : x + size[1]]
            for image, y, x in zip(padded, down.tolist(), right.tolist(), strict=True)
        ]
        images = torch.stack(moved)
        mirrored = (torch.rand(len(images)) < 0.5).view(-1, 1, 1, 1) & self.mirror
        return torch.where(mirrored, images.flip(-1), images)


class Block(nn.Module):
    """Two convolutions and what they are added to."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def build(
    features: tuple[int, ...],
    classes: int,
    width: int = 8,
    blocks: Sequence[int] = (1, 1),
    pixels: int = 1,
    mirror: bool = False,
) -> nn.Module:
    """Stages of so many blocks, each twice as wide as the one before; (2, 2, 2, 2) is ResNet-18."""
    channels = features[0] if len(features) == 3 else 1
    layers: list[nn.Module] = [
        nn.Unflatten(1, (1, -1)) if len(features) == 2 else nn.Identity(),
        Augmented(pixels, mirror),
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    before = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            wide = width << stage
            layers.append(Block(before, wide, 2 if stage and not block else 1))
            before = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
