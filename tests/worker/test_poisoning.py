"""Attacks on data: wrong labels and backdoors, and the metric of a backdoor."""

import dataclasses

import pytest
import torch

from varangian.plugins import InputError
from varangian.registry import ConfigError
from varangian.worker.attacks import ATTACKS, AttackError, Backdoor, LabelFlip
from varangian.worker.attacks.backdoor import triggered
from varangian.worker.data import Digits
from varangian.worker.data.partition import Iid
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.metrics import Accuracy, BackdoorSuccess, MetricError, choose_metrics
from varangian.worker.training.models import MODELS
from varangian.worker.training.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generator")

IMAGES = torch.zeros(4, 1, 5, 5)
LABELS = torch.tensor([0, 1, 2, -100])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Label flip


def test_a_part_of_the_labels_is_flipped():
    y = torch.arange(10).repeat(400)
    _, wrong = LabelFlip(rate=0.3).poisons(torch.zeros(4000, 1), y, 10, generator())
    changed = wrong != y
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(wrong[changed], 9 - y[changed])


def test_the_whole_batch_is_flipped_without_drawing():
    """So that runs with the attack as it always was have the same bits."""
    random = generator()
    before = random.get_state()
    LabelFlip().poisons(IMAGES, LABELS, 3, random)
    assert torch.equal(random.get_state(), before)


def test_random_labels_are_wrong_and_of_every_other_class():
    y = torch.arange(5).repeat(1000)
    _, wrong = LabelFlip(labels="random").poisons(torch.zeros(5000, 1), y, 5, generator())
    assert not bool((wrong == y).any())
    steps = torch.bincount((wrong - y) % 5, minlength=5)
    assert steps[0] == 0
    assert steps[1:].tolist() == pytest.approx([1250] * 4, rel=0.1)


def test_labels_that_no_loss_looks_at_stay():
    for attack in (LabelFlip(rate=0.99), LabelFlip(labels="random"), Backdoor(rate=1.0, target=1)):
        _, y = attack.poisons(IMAGES, LABELS, 3, generator())
        assert y[3] == -100
    tokens = torch.tensor([[0, 1, -100], [2, 2, 0]])
    _, y = LabelFlip(rate=0.999, labels="random").poisons(tokens, tokens, 3, generator())
    assert y[0, 2] == -100
    assert not bool((y[tokens >= 0] == tokens[tokens >= 0]).any())


# Backdoor


def test_a_backdoor_puts_a_square_into_the_last_corner():
    x, y = Backdoor(rate=1.0, size=2, value=3.0, target=2).poisons(IMAGES, LABELS, 3, generator())
    assert x[0, 0].nonzero().tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]
    assert x.unique().tolist() == [0.0, 3.0]
    assert y.tolist() == [2, 2, 2, -100]
    assert not bool(IMAGES.any()), "a batch is not written to"


def test_the_trigger_of_a_flat_vector_is_its_end():
    assert triggered(torch.zeros(1, 4), 2, 1.5).tolist() == [[0.0, 0.0, 1.5, 1.5]]


def test_a_part_of_the_samples_has_the_trigger_and_the_target():
    x, y = torch.zeros(4000, 9), torch.ones(4000, dtype=torch.long)
    bad_x, bad_y = Backdoor(rate=0.25).poisons(x, y, 3, generator())
    marked = bad_x[:, -1] == 2.5
    assert float(marked.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(bad_y == 0, marked)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(4, 3, dtype=torch.long), "needs images or vectors of numbers"),
        ({"input_ids": torch.zeros(4, 3)}, "needs images or vectors of numbers"),
        (torch.zeros(4, 1, 2, 2), "at most as large as a sample, 2. Found 3"),
    ],
)
def test_data_without_room_for_a_trigger_is_refused(x, words):
    with pytest.raises(AttackError, match=words):
        triggered(x, 3, 1.0)


def test_a_backdoor_to_an_unknown_class_is_refused():
    with pytest.raises(AttackError, match="Found 7"):
        Backdoor(target=7).poisons(IMAGES, LABELS, 3, generator())
    with pytest.raises(AttackError, match=r"`byzantine.attack.backdoor.target` .* from 0 to 9. Found 12"):
        crew(attack=Backdoor(target=12))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"label_flip": {"rate": 0.0}}, "above 0 and at most 1"),
        ({"label_flip": {"labels": "none"}}, "one of 'mirror', 'random'"),
        ({"backdoor": {"rate": 2.0}}, "above 0 and at most 1"),
        ({"backdoor": {"target": -1}}, "counted from 0"),
        ({"backdoor": {"size": 0}}, "positive integer"),
        ({"backdoor": {"value": float("inf")}}, "finite"),
    ],
)
def test_bad_settings(spec, words):
    with pytest.raises(ConfigError, match=words):
        ATTACKS.build(spec, "byzantine.attack")


# The metric


def crew(metrics=None, attack=None):
    names = tuple(f"w{i}" for i in range(4))
    byzantine = () if attack is None else names[-1:]
    return WorkerCompute(
        Task(
            seed=0,
            workers=names,
            model=MODELS.build({"mlp": {"hidden": [16]}}, ""),
            data=Digits(),
            partition=Iid(),
            byzantine=byzantine,
            attack=attack,
            metrics=metrics,
        )
    )


def test_the_success_of_a_backdoor_is_reported_beside_the_accuracy():
    compute = crew(attack=Backdoor(target=3, size=2))
    assert compute.score_names == ("accuracy", "backdoor_success")
    assert choose_metrics(None, "cross_entropy", 10) == {"accuracy": Accuracy()}
    assert choose_metrics((Accuracy(),), "cross_entropy", 10, Backdoor()) == {"accuracy": Accuracy()}
    asked = choose_metrics((BackdoorSuccess(size=4),), "cross_entropy", 10, Backdoor(target=3))
    assert asked == {"backdoor_success": BackdoorSuccess(target=3, size=4, value=2.5)}


def test_the_success_is_that_of_samples_with_the_trigger_that_are_not_of_the_target():
    compute = crew((Accuracy(), BackdoorSuccess(target=3, size=2, value=2.5)))
    parameters = compute.initial()
    found = compute.evaluate(parameters)
    model = compute.trainer.state(parameters)
    x = triggered(compute.dataset.test_x.float() / 6, 2, 2.5).flatten(1)
    layers = [(model[f"{name}.weight"], model[f"{name}.bias"]) for name in names_of_layers(model)]
    for place, (weight, bias) in enumerate(layers):
        x = x @ weight.T + bias
        x = x.relu() if place < len(layers) - 1 else x
    y = compute.dataset.test_y
    others = y != 3
    wanted = float((x.argmax(dim=1) == 3)[others].float().mean())
    assert found["backdoor_success"] == pytest.approx(wanted)
    assert found["accuracy"] == crew().evaluate(parameters)["accuracy"], "samples stay as they are"


def names_of_layers(model):
    return [name.removesuffix(".weight") for name in model if name.endswith(".weight")]


def test_a_trigger_that_does_not_fit_is_refused_before_the_run():
    large, unknown = crew((Accuracy(),), Backdoor(size=9)), crew((BackdoorSuccess(target=10),))
    with pytest.raises(InputError, match="at most as large as a sample, 8"):
        large.rehearse(large.initial())
    with pytest.raises(MetricError, match="from 0 to 9"):
        unknown.rehearse(unknown.initial())


def test_a_metric_needs_a_trigger():
    with pytest.raises(ValueError, match="positive integer"):
        BackdoorSuccess(size=0)
    known = BackdoorSuccess(value=1.0).of(Backdoor(target=2, value=9.0))
    assert dataclasses.asdict(known) == {"target": 2, "size": 3, "value": 1.0, "name": None}
