"""Small named models. None keeps statistics of its inputs: only parameters travel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor, nn

from varangian.plugins import call
from varangian.registry import Registry
from varangian.worker.training.flat import ModelError

Norm = Literal["group", "batch"]


class Model(Protocol):
    """A recipe of a model: builds the module for some data."""

    def build(self, features: tuple[int, ...], classes: int) -> nn.Module:
        """A module from (batch, *features) to (batch, classes), initialised at random.

        Without classes the second number is how many numbers a target has.

        Raises:
            ModelError: when it cannot take inputs of this shape.
        """
        ...


MODELS: Registry[Model] = Registry("model")


@MODELS.register("softmax")
@dataclass(frozen=True)
class Softmax:
    """Softmax regression: one linear layer."""

    def build(self, features: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(numbers("softmax", features), classes))


@MODELS.register("mlp")
@dataclass(frozen=True)
class Mlp:
    """Multilayer perceptron: fully connected layers with ReLU between them."""

    hidden: int | tuple[int, ...] = 64
    """Width of the hidden layer, or of each."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"`hidden` should be one or more widths of at least 1. Found {self.hidden!r}.")

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.hidden,) if isinstance(self.hidden, int) else self.hidden

    def build(self, features: tuple[int, ...], classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = numbers("mlp", features)
        for hidden in self.widths:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, classes))


@MODELS.register("cnn")
@dataclass(frozen=True)
class Cnn:
    """Small CNN: three 3x3 convolutions, each halving the image, and a linear layer."""

    width: int = 16
    """Channels after the first convolution; the others double it."""

    def __post_init__(self) -> None:
        check_width(self.width)

    def build(self, features: tuple[int, ...], classes: int) -> nn.Module:
        channels, height, width = image("cnn", features)
        layers: list[nn.Module] = []
        for out in (self.width, 2 * self.width, 4 * self.width):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
            channels, height, width = out, -(-height // 2), -(-width // 2)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, classes))


@MODELS.register("lenet")
@dataclass(frozen=True)
class LeNet:
    """LeNet-5 with ReLU and max pooling: two 5x5 convolutions and three linear layers.

    "Gradient-Based Learning Applied to Document Recognition" (LeCun et al., 1998), as it is used for images
    of 32x32 pixels: 6 and 16 channels, then 120 and 84 units.
    """

    def build(self, features: tuple[int, ...], classes: int) -> nn.Module:
        channels, height, width = image("lenet", features)
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
        if min(rows, columns) < 1:
            found = f"{height}x{width}"
            raise ModelError(f"The model 'lenet' takes images of at least 16x16 pixels. Found {found}.")
        return nn.Sequential(
            *(nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(16 * rows * columns, 120), nn.ReLU()),
            *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
        )


@MODELS.register("resnet18")
@dataclass(frozen=True)
class ResNet18:
    """ResNet-18 for 32x32 images: a 3x3 stem without pooling.

    "Deep Residual Learning for Image Recognition" (He et al., 2016), with its ImageNet stem replaced as is
    usual for CIFAR-10. "Group Normalization" (Wu and He, 2018) by default. `norm: batch` uses the
    statistics of the batch at hand also when it evaluates: running ones would be a state of their own.
    """

    width: int = 64
    """Channels of the stem; the four stages have 1, 2, 4 and 8 times as many."""
    norm: Norm = "group"
    groups: int = 32
    """Groups of each GroupNorm; must divide `width`."""

    def __post_init__(self) -> None:
        check_width(self.width)
        if self.groups < 1 or self.width % self.groups:
            raise ValueError(f"`groups` should divide `width` = {self.width}. Found {self.groups}.")

    def build(self, features: tuple[int, ...], classes: int) -> nn.Module:
        channels, _, _ = image("resnet18", features)
        layers: list[nn.Module] = [conv3x3(channels, self.width, 1), self._norm(self.width), nn.ReLU()]
        channels = self.width
        for stage in range(4):
            out = self.width << stage
            layers += [self._block(channels, out, 1 if stage == 0 else 2), self._block(out, out, 1)]
            channels = out
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    def _block(self, channels: int, out: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            conv3x3(channels, out, stride),
            self._norm(out),
            nn.ReLU(),
            conv3x3(out, out, 1),
            self._norm(out),
        )
        if (channels, stride) == (out, 1):
            return Residual(body, nn.Identity())
        projection = nn.Conv2d(channels, out, 1, stride=stride, bias=False)
        return Residual(body, nn.Sequential(projection, self._norm(out)))

    def _norm(self, channels: int) -> nn.Module:
        if self.norm == "group":
            return nn.GroupNorm(self.groups, channels)
        return nn.BatchNorm2d(channels, track_running_stats=False)


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.shortcut(x)
        return y.relu()


@MODELS.register("custom")
@dataclass(frozen=True)
class Custom:
    """A model of your own: `target: module:function`, called with (features, classes, **options).

    `features` is the shape of one sample; of several inputs a tuple or a mapping of shapes. `classes` is
    how many numbers the model is to give: classes, or the numbers of one target.
    """

    target: str
    options: Mapping[str, object] = field(default_factory=dict)

    def build(self, features: tuple[int, ...], classes: int) -> nn.Module:
        given = {"features": features, "classes": classes}
        built = call("model", self.target, given, self.options, ModelError)
        if not isinstance(built, nn.Module):
            found = type(built).__name__
            raise ModelError(f"`model` {self.target!r} should return an nn.Module. Found {found}.")
        return built


@MODELS.register("own")
@dataclass(frozen=True)
class Own:
    """The module of a program, as it gave it to `varangian.Server`; a configuration cannot build it."""

    name: str = ""
    """Its class."""

    def build(self, features: tuple[int, ...], classes: int) -> nn.Module:
        raise ModelError(
            "`model` own is the module of a program, which alone can build it: only varangian.Server(...)"
            ".serve(...) in that program trains it."
        )


def conv3x3(channels: int, out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)


def check_width(width: int) -> None:
    if width < 1:
        raise ValueError(f"`width` should be at least 1. Found {width}.")


def numbers(model: str, features: tuple[int, ...]) -> int:
    """The number of values in a sample."""
    if isinstance(features, tuple) and all(isinstance(size, int) for size in features):
        if not features:
            raise ModelError(
                f"The model {model!r} takes samples of shape (N, numbers). Found (N,). Make it (N, 1), as "
                "x[:, None]."
            )
        if not math.prod(features):
            raise ModelError(f"The model {model!r} takes at least one number a sample. Found {features}.")
        return math.prod(features)
    raise ModelError(
        f"The model {model!r} takes one tensor for each sample. Found several, of shapes {features}. Name "
        "a model of your own as model.custom.target."
    )


def image(model: str, features: tuple[int, ...]) -> tuple[int, int, int]:
    if len(features) != 3:
        raise ModelError(
            f"The model {model!r} takes images (channels, height, width). Found inputs of shape {features}."
        )
    if features[2] in (1, 3, 4) and min(features[:2]) > 4:
        raise ModelError(
            f"The model {model!r} takes images (channels, height, width). Found shape {features}: "
            "they look like images with the channels last. Permute them to have the channels first."
        )
    return features[0], features[1], features[2]
