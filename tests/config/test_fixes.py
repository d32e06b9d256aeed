"""A suggestion is only made if the configuration is accepted with it."""

import random
import re

import pytest

from varangian.aggregators import RULES
from varangian.config import load
from varangian.registry import ConfigError

SUGGESTED = re.compile(r"(?<!write )\b([a-z][\w.]*=(?:\{.*\}|[\w.+-]+\w))")
SINGLE = [
    ["aggregator={krum: {f: 7}}"],
    ["aggregator={mix: [{nnm: {f: 7}}], rule: krum}"],
    ["aggregator={fedavg: {participants: 6, rule: {krum: {f: 5}}}}"],
    ["workers=15", "f=7", "aggregator=nnm+krum"],
    ["byzantine.count=3"],
    ["byzantine.count=15"],
    ["byzantine.attack=alie", "f=2"],
    ["byzantine.attack=mimic", "f=0"],
    ["server.port=5000", "server.data_port=5000"],
    ["aggregator={fedlaavg: {form: delta, rule: median}}"],
    ["participation=async", "byzantine.attack=alie", "byzantine.count=3", "f=2"],
    ["availability.alternating.period=4", "f=0", "aggregator=mean"],
    ["availability.alternating.period=4", "f=3", "aggregator=median", "server.quorum=15"],
    ["seed="],
    ["server.quorum="],
    ["aggregator=nnm"],
    ["aggregator=bucketing+nnm"],
    ["aggregator=median+nnm"],
]


def random_settings(seed):
    """Numbers of workers that rules may and may not stand, with and without an f of their own."""
    rng = random.Random(seed)
    n = rng.randint(3, 30)
    name = rng.choice([*RULES])
    own = {"f": rng.randint(0, n)} if any(field.name == "f" for field in RULES.fields(name)) else {}
    rule = f"{{{name}: {own}}}" if rng.random() < 0.4 else name
    rule = f"{{mix: [nnm], rule: {rule}}}" if rng.random() < 0.3 else rule
    settings = [f"workers={n}", f"f={rng.randint(0, n // 2)}", f"aggregator={rule}"]
    if rng.random() < 0.3:
        settings.append(f"server.quorum={rng.randint(1, n)}")
    if rng.random() < 0.3:
        settings.append(f"participation.fedavg.participants={rng.randint(1, n)}")
    return settings


def refused(settings):
    """What is wrong, by path and rule."""
    try:
        load(None, settings)
    except ConfigError as error:
        return {(problem.path, problem.rule): str(problem) for problem in error.problems}
    return {}


@pytest.mark.parametrize("settings", [*SINGLE, *map(random_settings, range(30))], ids=" ".join)
def test_every_suggestion_solves_its_problem_and_makes_no_other(settings):
    before = refused(settings)
    for place, sentence in before.items():
        assert "{fixes}" not in sentence
        for suggestion in suggestions(sentence):
            key = suggestion.partition("=")[0]
            kept = [text for text in settings if text != f"{key}="]
            after = set(refused([*kept, suggestion]))
            assert after <= set(before) - {place}, suggestion


def suggestions(sentence):
    _, _, hint = sentence.partition(". ")
    found = re.search(r"write ([\w+]+)\.$", hint)
    return [f"aggregator={found[1]}"] if found else SUGGESTED.findall(hint)


def test_there_are_suggestions_to_try():
    found = {path: text for (path, _), text in refused(["aggregator={krum: {f: 7}}"]).items()}
    assert found["aggregator"].endswith("It would hold with workers=17 or aggregator.krum.f=3.")
    assert sum(bool(suggestions(text)) for settings in SINGLE for text in refused(settings).values()) >= 14
