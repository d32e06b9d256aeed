import sys

import pytest
import torch

from varangian.registry import ConfigError
from varangian.worker.seeds import globally_seeded
from varangian.worker.training.flat import ModelError, check_model, flatten
from varangian.worker.training.models import MODELS, Cnn, Custom, LeNet, Mlp, ResNet18, Softmax


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("model", "features", "parameters"),
    [
        (Softmax(), (1, 8, 8), 64 * 10 + 10),
        (Mlp(), (1, 8, 8), 64 * 64 + 64 + 64 * 10 + 10),
        (Mlp(hidden=(128, 64)), (1, 8, 8), 17_226),
        (Mlp(hidden=5), (7,), 7 * 5 + 5 + 5 * 10 + 10),
        (Cnn(), (3, 32, 32), 448 + 4_640 + 18_496 + 10_250),
        (Cnn(), (1, 8, 8), 160 + 4_640 + 18_496 + 650),
        (LeNet(), (3, 32, 32), 62_006),  # 456 + 2 416 + 48 120 + 10 164 + 850
        (LeNet(), (1, 28, 28), 156 + 2_416 + 30_840 + 10_164 + 850),
        (
            ResNet18(),
            (3, 32, 32),
            11_173_962,
        ),  # as the usual one with BatchNorm: both have 2 for each channel
    ],
)
def test_parameter_counts(model, features, parameters):
    assert count(model.build(features, 10)) == parameters


@pytest.mark.parametrize(
    ("model", "features"),
    [
        (Softmax(), (5,)),
        (Softmax(), (1, 8, 8)),
        (Mlp(), (3, 4, 4)),
        (Cnn(), (3, 32, 32)),
        (Cnn(), (1, 5, 7)),
        (Cnn(), (1, 1, 1)),
        (LeNet(), (3, 32, 32)),
        (LeNet(), (1, 16, 19)),
        (ResNet18(width=8, groups=4), (3, 32, 32)),
        (ResNet18(width=8, norm="batch", groups=1), (1, 8, 8)),
    ],
)
def test_models_score_each_class_and_keep_no_statistics(model, features):
    module = model.build(features, 3)
    check_model(module, lambda: module(torch.rand(4, *features)))
    assert module(torch.rand(4, *features)).shape == (4, 3)


def test_resnet_halves_the_image_three_times_after_a_stem_that_does_not():
    module = ResNet18(width=8, groups=4).build((3, 32, 32), 10)
    x = torch.rand(1, 3, 32, 32)
    sizes = []
    for layer in module:
        x = layer(x)
        sizes.append(x.shape[-1])
    assert sizes[:11] == [32, 32, 32, 32, 32, 16, 16, 8, 8, 4, 4]


def test_resnet_has_no_buffers():
    assert not [*ResNet18(width=8, groups=4).build((3, 32, 32), 10).buffers()]
    assert not [*ResNet18(width=8, groups=4, norm="batch").build((3, 32, 32), 10).buffers()]


def test_initial_parameters_follow_the_seed():
    def build(seed):
        with globally_seeded(seed, "initial", device=torch.device("cpu")):
            return flatten(Cnn().build((3, 8, 8), 4))

    assert torch.equal(build(1), build(1))
    assert not torch.equal(build(1), build(2))


def test_lenet_refuses_images_of_which_nothing_is_left():
    with pytest.raises(ModelError, match=r"at least 16x16 pixels\. Found 16x15"):
        LeNet().build((1, 16, 15), 10)


@pytest.mark.parametrize("model", [Cnn(), LeNet(), ResNet18(width=8, groups=4)])
def test_image_models_refuse_other_data(model):
    with pytest.raises(ModelError, match=r"channels, height, width.*\(64,\)"):
        model.build((64,), 10)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"mlp": {"hidden": 0}}, "widths of at least 1"),
        ({"mlp": {"hidden": []}}, "widths of at least 1"),
        ({"cnn": {"width": 0}}, "at least 1. Found 0"),
        ({"resnet18": {"width": 48}}, "`groups` should divide `width` = 48. Found 32"),
        ({"resnet18": {"norm": "layer"}}, "one of 'group', 'batch'"),
        ("resnet", "Did you mean 'resnet18'"),
    ],
)
def test_bad_settings(spec, words):
    with pytest.raises(ConfigError, match=words):
        MODELS.build(spec, "model")


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A module of the user's in the current folder."""
    (tmp_path / "my_parts.py").write_text(
        "from torch import nn\n"
        "number = 3\n"
        "def linear(features, classes, bias=True):\n"
        "    return nn.Linear(features[0], classes, bias=bias)\n"
        "def nothing(features, classes):\n"
        "    return None\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return "my_parts"


def test_custom_model_from_the_current_folder(here):
    assert count(Custom(f"{here}:linear").build((5,), 3)) == 18
    assert count(Custom(f"{here}:linear", {"bias": False}).build((5,), 3)) == 15


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("my_parts", "should look like"),
        (":linear", "should look like"),
        ("my_parts:", "should look like"),
        ("no_such_module:linear", "cannot be imported: .*No module named"),
        ("my_parts:no_such_function", "cannot be imported: .*no_such_function"),
        ("my_parts:number", "should be a function. Found int"),
        ("my_parts:nothing", "should return an nn.Module. Found NoneType"),
    ],
)
def test_custom_models_that_cannot_be_used(here, target, words):
    with pytest.raises(ValueError, match=words):
        Custom(target).build((5,), 3)
