"""Replay: rounds computed again from kept rows, and compared with their records to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from varangian.aggregators import AggregationError
from varangian.aggregators.kernels import kernels_in_use
from varangian.config import RunConfig
from varangian.config import load as load_config
from varangian.config.build import learner as build_learner
from varangian.config.worker_names import SAMPLES, read_weights
from varangian.experiments.audit.chain_check import FILE, Line
from varangian.launch.checkpoints.kept_rows import KeptRound, kept_rounds
from varangian.launch.membership.changed_settings import with_members
from varangian.protos.layout import Layout, fragments_of
from varangian.server.rows.fragments import Fragmented
from varangian.server.rows.source import StepInput
from varangian.server.training.learner import Measure, Step
from varangian.server.training.optimizers import OwnOptimizer, Sgd
from varangian.server.training.parameters import ParameterVersions
from varangian.state_file import StateFileError

COMPARED = ("weights", "reference_weight", "effective", "update_norm", "lr")
"""Fields of a record that a step gives, besides the parameters."""


@dataclass
class Replayed:
    """The rounds that were computed again, and what was different."""

    problems: list[str] = field(default_factory=list[str])
    rounds: list[int] = field(default_factory=list[int])
    """Rounds with the same bits."""
    left_out: list[str] = field(default_factory=list[str])
    """Sentences about rounds that were not computed."""


def replay(
    folder: Path,
    lines: Sequence[Line],
    records: Mapping[int, Mapping[str, Any]],
    manifest: Mapping[str, Any],
) -> Replayed:
    """Compute the rounds again whose rows were kept.

    This imports the code of the user that the configuration names.

    Args:
        folder: of the run.
        lines: of its record.
        records: those that count, by round.
        manifest: of the run.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    done = Replayed()
    names = {line.round: line.name for line in lines}
    configs = dict(_configs(lines))
    read: dict[tuple[str, int], RunConfig] = {}
    products = LatestProducts()
    changes = sorted(number for number, record in records.items() if record.get("membership"))
    for round, path in kept_rounds(folder).items():
        where, record = f"{path.parent.name}/{path.name}", records.get(round)
        if record is None:
            done.left_out.append(f"{where} is of a round that has no record")
            continue
        try:
            kept = KeptRound.read(path, round)
        except (StateFileError, OSError) as error:
            done.problems.append(str(error))
            continue
        if kept.aggregated:
            done.left_out.append(f"round {round} was updated from a running sum, and was not recomputed")
            continue
        before = records.get(round - 1, {}).get("parameters")
        if before not in (None, _digest(kept.learner["parameters"])):
            done.problems.append(f"{where} begins with other parameters than {names[round - 1]} ended with")
            continue
        at = max((change for change in changes if change <= round), default=-1)
        if (configs[round], at) not in read:
            members = records[at]["membership"] if at >= 0 else None
            read[configs[round], at] = _config(folder / configs[round], members, manifest.get("samples"))
        config = read[configs[round], at]
        try:
            fragmented = products.at(config, round, kept)
        except (KeyError, TypeError, ValueError) as error:
            done.problems.append(f"{where} is not of fragments as in {configs[round]} ({error})")
            continue
        if products.differ:
            done.problems.append(f"{where} begins with other inner products than the rows before it have")
            continue
        if different := _difference(config, round, kept, record, fragmented):
            done.problems.append(f"{FILE}, {names[round]}, has other {different} than its kept rows give")
        else:
            done.rounds.append(round)
    if done.rounds and any(isinstance(config.optimizer, OwnOptimizer) for config in read.values()):
        done.left_out.append("steps were not recomputed: a program has the optimizer; aggregates were")
    if done.problems and (others := _other_versions(manifest)):
        done.problems.append(f"rounds were recomputed with {others}, where bits may differ")
    return done


def _configs(lines: Sequence[Line]) -> Iterator[tuple[int, str]]:
    """The configuration of each round: that of the last start that changed it."""
    name = "config.yaml"
    for line in lines:
        name = next(iter(line.configs), name)
        yield line.round, name


def _config(file: Path, members: Mapping[str, Any] | None, samples: Any) -> RunConfig:
    """The configuration in a file, with the workers and the f of the last change of members.

    Args:
        file: the configuration.
        members: that change, as the record has it.
        samples: the number of training samples of each worker, where they were weights.
    """
    config = load_config(file, whole=False)
    if config.weights == SAMPLES and isinstance(samples, dict):
        config = config.model_copy(update={"weights": read_weights(samples)})
    return config if members is None else with_members(config, members["workers"], members["f"])


class LatestProducts:
    """The inner products of fragments from round to round: each round measures those of its own."""

    def __init__(self) -> None:
        self._before: tuple[int, Fragmented] | None = None
        self.differ = False
        """Whether the last round began with others than those that rounds before it have left."""

    def at(self, config: RunConfig, round: int, kept: KeptRound) -> Fragmented | None:
        """The products that a round began with; None where parameters are not split.

        Raises:
            ValueError, KeyError, TypeError: they are not of as many fragments as the configuration has.
        """
        if kept.earlier is None:
            return None
        shapes = kept.shapes or ()
        layout = Layout(tuple((str(place), shape) for place, shape in enumerate(shapes)))
        source = Fragmented(fragments_of(layout, config.server.fragments))
        source.restore(kept.earlier)
        last, before = self._before or (round - 1, source)
        self.differ = not before.agrees(source, source.fragments.changed(last + 1, round))
        self._before = None if self.differ else (round, source)  # later ones are not blamed
        return source


def _difference(
    config: RunConfig,
    round: int,
    kept: KeptRound,
    record: Mapping[str, Any],
    fragmented: Fragmented | None,
) -> str:
    """The name of what is different in the record of a round; empty where all is the same."""
    state, compared = kept.learner, [*COMPARED]
    if own := isinstance(config.optimizer, OwnOptimizer):  # which no file can build
        config = config.model_copy(update={"optimizer": Sgd()})
        compared.remove("lr")
    before, count = state["parameters"], kept.buffer_count
    split = None if fragmented is None else fragmented.fragments
    learner = build_learner(
        config, before, blocks=kept.blocks, shapes=kept.shapes, buffers=count, fragments=split
    )
    learner.restore({**state, "optimizer": learner.state()["optimizer"]} if own else state)
    measured = kept.measured
    measure: Measure | None = None if measured is None else lambda _: measured
    if fragmented is not None:
        measure = fragmented.measure(round, kept.rows)
    whole = StepInput(kept.rows, kept.mix, measure, fresh=kept.fresh, buffers=kept.buffers)
    gated = record.get("gated")
    inputs = whole.without({*gated} & kept.rows.keys() if isinstance(gated, dict) else ())
    threads = torch.get_num_threads()
    torch.set_num_threads(config.server.threads)
    try:
        step = learner.step(
            round,
            inputs.rows,
            kept.faults,
            mix=inputs.mix,
            measure=inputs.measure,
            fresh=inputs.fresh,
            buffers=inputs.buffers,
        )
    except AggregationError as error:
        return "" if str(error) in str(record.get("skipped")) else "results"
    finally:
        torch.set_num_threads(threads)
    if not own and record.get("parameters") not in (None, learner.version.digest.hex()):
        return "parameters"
    found = _fields(step)
    return next((name for name in compared if record.get(name) != found[name]), "")


def _fields(step: Step) -> dict[str, Any]:
    return {
        "weights": step.weights,
        "reference_weight": step.reference_weight,
        "effective": step.effective,
        "update_norm": step.norm,
        "lr": step.lr,
    }


def _digest(parameters: torch.Tensor) -> str:
    return ParameterVersions(parameters).version.digest.hex()


def _other_versions(manifest: Mapping[str, Any]) -> str:
    """What this program has of other versions than the run, as bits may depend on it; empty if nothing."""
    here = {"torch": torch.__version__, "kernels": kernels_in_use()}
    packages = manifest.get("packages")
    there = {
        "torch": packages.get("torch") if isinstance(packages, dict) else None,
        "kernels": manifest.get("kernels"),
    }
    return " and ".join(
        f"{name} {here[name]} (the run: {there[name]})" for name in here if there[name] != here[name]
    )
