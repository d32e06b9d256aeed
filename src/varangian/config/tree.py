"""The settings of a run, as a tree of pydantic models: their types, defaults and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from varangian.aggregators import Aggregator
from varangian.aggregators.spec import aggregator_from, spec_of
from varangian.config.aggregator import aggregator_groups, aggregator_schema
from varangian.config.errors import sections
from varangian.config.fields import Group, many_of, of_fields, of_registry, of_settings
from varangian.config.names import default_names, read_names
from varangian.config.schema import DIALECT, JsonSchema
from varangian.protos.encoding import FLOAT32, Dtype
from varangian.protos.network.address import parse_listen_host
from varangian.registry import join
from varangian.server.participation import DEFAULT, PARTICIPATION, Participation
from varangian.server.protocol.state import Selection
from varangian.server.training.ema import Ema
from varangian.server.training.optimizer import OPTIMIZERS, Optimizer
from varangian.worker.attacks import ATTACKS, Attack, Sight
from varangian.worker.data import DATASETS, Source
from varangian.worker.data.partition import PARTITIONS, Partition
from varangian.worker.simulation.availability import AVAILABILITY, Availability
from varangian.worker.simulation.delays import DELAYS, Delay
from varangian.worker.training.losses import LOSSES, Loss
from varangian.worker.training.metrics import METRICS, Metric
from varangian.worker.training.models import MODELS, Model


def _aggregator(value: Any, f: int) -> Aggregator:
    return aggregator_from(value, "", f=f)


def named_default(name: str) -> Any:
    """A default that becomes an object like everything else that stands there (`validate_default`)."""
    return name


class Section(BaseModel):
    """Base of all parts of the tree: unknown settings are refused, values are not converted or changed."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        """A heading with nothing below it, as `server:`, is an empty section."""
        return {} if value is None else value


class Workers(Section):
    """What every worker does in a round."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Samples per worker and step."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """m <- momentum m + (1 - momentum) g, at the worker; 0 sends plain gradients."""
    local_steps: Annotated[int, Field(ge=1)] = 1
    """C, the steps that a worker takes by itself before it pushes: y <- y - gamma g(y), from the model x.
    What it sends is (x - y) / gamma: with one step the gradient, with more the sum of those on the way."""
    local_lr: Annotated[float, Field(gt=0)] | None = None
    """gamma, the learning rate of these steps in every round; null is the server's of that round, which
    follows `optimizer.schedule`."""
    per_process: Annotated[int, Field(ge=1)] | None = None
    """Worker identities that one process hosts; null spreads them over the cores."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads of torch in each worker process."""
    device: str = "cpu"
    """Where workers compute, as torch names it."""
    patience: Annotated[float, Field(gt=0)] | None = None
    """Seconds that a worker waits for a server that cannot be reached before it gives up; null is as long
    as it takes. Meanwhile its log says once a minute what it waits for."""


class Server(Section):
    """Where the server listens, and when it closes a round."""

    host: Annotated[str, AfterValidator(parse_listen_host)] = "127.0.0.1"
    """A name or an address of this machine; `*` is every address that it has."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0 takes any free port."""
    data_port: Annotated[int, Field(ge=0, le=65535)] | None = 0
    """Where payloads come and go beside gRPC, on the same `host`. 0 takes any free port; with null they go
    over gRPC, as they do for a worker that cannot reach the port: the advice beyond a local network. The
    results are the same."""
    heartbeat: str | None = None
    """A file that the server touches every second while it answers, for health checks: its age says whether
    it does, without a program that asks."""
    quorum: Annotated[int, Field(ge=1)] | None = None
    """Pushes without which no round closes. null is, by `participation`: workers - f for sync, buffer - f
    for async, participants - f for fedavg, the smallest neighbourhood - f for asap, or as many more as the
    rule needs, up to all of them; and 1 for fedlaavg, where who is missing has a row all the same."""
    deadline: Annotated[float, Field(gt=0)] = 60.0
    """Seconds after which a round closes without the missing workers, if the quorum is met."""
    wait_factor: Annotated[float, Field(ge=1)] | None = 3.0
    """Once the quorum has answered, and no fewer than all but f, a round waits for the others until this
    many times as long as that took, counted from its start. null waits until the deadline; async always
    does, since its `buffer` says how many it waits for."""
    wait_floor: Annotated[float, Field(ge=0)] = 10.0
    """Seconds after the start of a round before which `wait_factor` closes none."""
    wait_rounds: Annotated[int, Field(ge=1)] | None = 3
    """Rounds in a row that a connected worker may miss. After that only one round in ten deadlines waits
    for it, until it is in time again; its vectors count whenever they are in time. null always waits, as
    sync does with `availability`, where workers are away by plan."""
    shortfall: Literal["wait", "skip", "fail"] = "wait"
    """At the deadline below the quorum: wait on, go to the next round without an update, or end the run."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads of torch in the server; the same number gives the same bits. Once all vectors of a round have
    come, kernels whose bits do not depend on the number use every core."""
    rows: Dtype = FLOAT32
    """How vectors are kept until a round closes; bfloat16 takes half the memory and rounds them."""
    memory: Literal["rows", "window"] = "rows"
    """Whole rows, or a few blocks of columns of each: then the slowest worker sets the pace, and only rules
    that go by columns and the mean will do. `simulate` has whole rows, and the same numbers."""
    tls: bool | None = None
    """Whether `varangian run` makes certificates for the run; null does unless `host` is this machine."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    """What mixings draw from, as bucketing. null is `seed` in `varangian run`, so that an experiment can be
    repeated, and a fresh secret in `varangian server`: a worker that knew it would know the buckets."""


class Wire(Section):
    """How vectors travel."""

    dtype: Dtype = FLOAT32
    """What workers write their vectors in; bfloat16 halves the traffic and keeps 8 bits of each number."""


class Byzantine(Section):
    """The workers that attack; the server is never told which."""

    count: Annotated[int, Field(ge=0)] = 0
    """The last `count` names misbehave."""
    attack: Annotated[Attack | None, of_registry(ATTACKS, None, none=True)] = None
    knows: Sight | None = None
    """Whose honest gradients an attacker sees; null is what the attack needs."""


class Evaluation(Section):
    """When the server looks at held-out data."""

    every: Annotated[int, Field(ge=1)] = 10
    """In rounds; the last round is always evaluated."""


MAX_WORKERS = 10_000
NUMBER_OR_NAMES: JsonSchema = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": MAX_WORKERS},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
    ]
}


class RunConfig(Section):
    """Everything that a run depends on."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    """Every random stream of the run comes from it."""
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS), WithJsonSchema(NUMBER_OR_NAMES)] = 15
    """How many workers take part; or a list of what they are called, as [alice, bob]."""
    names: list[str] | None = None
    """What the workers are called, sorted; null is w00, w01 and so on. A list in `workers` sets both."""
    f: Annotated[int, Field(ge=0)] = 3
    """How many workers may be Byzantine; every rule and mixing is told, unless given its own."""
    rounds: Annotated[int, Field(ge=1)] = 200
    backend: Literal["processes", "simulate"] = "processes"
    """Real processes over gRPC, or everything in one process; the numbers are the same."""
    output: str = "runs"
    """Where run folders are made."""
    aggregator: Annotated[
        Aggregator, Group(_aggregator, lambda built: spec_of(built), aggregator_schema, "flag")
    ] = named_default("flag")
    """A rule; or mixings and a rule, as `nnm+krum` or, with fields, `{mix: [...], rule: ...}`. `fedlaavg`,
    `fedavg` and `asap`, with a rule among their fields, stand for that participation."""
    participation: Annotated[Participation, of_registry(PARTICIPATION, DEFAULT)] = named_default(DEFAULT)
    """Whose vectors make a round: everybody's, those of some who are there, or whoever's come."""
    model: Annotated[Model, of_registry(MODELS, "mlp")] = named_default("mlp")
    data: Annotated[Source, of_registry(DATASETS, "digits")] = named_default("digits")
    loss: Annotated[Loss, of_registry(LOSSES, "cross_entropy")] = named_default("cross_entropy")
    """What training makes small; your own as `module:function`."""
    metrics: Annotated[tuple[Metric, ...] | None, many_of(METRICS)] = None
    """What is reported of held-out data beside the loss, as [accuracy, "module:function"]; null is the
    accuracy where samples have classes."""
    partition: Annotated[Partition, of_registry(PARTITIONS, "shared")] = named_default("shared")
    """Which training samples each worker draws from."""
    availability: Annotated[Availability, of_registry(AVAILABILITY, "always")] = named_default("always")
    """In which rounds each worker takes part; in the others it neither pulls nor pushes."""
    delays: Annotated[Delay, of_registry(DELAYS, "none")] = named_default("none")
    """How long each worker waits before it pushes; `simulate` lets virtual time pass instead."""
    worker: Workers = Workers()
    optimizer: Annotated[Optimizer, of_settings(OPTIMIZERS, "sgd", ("schedule", "warmup"))] = named_default(
        "sgd"
    )
    """How the server steps along the aggregate: a `name` and its settings, as {name: adam, lr: 0.001}."""
    server: Server = Server()
    wire: Wire = Wire()
    byzantine: Byzantine = Byzantine()
    evaluate: Evaluation = Evaluation()
    ema: Annotated[Ema | None, of_fields(Ema, "an average of the model")] = None
    """An average of the model over rounds, at the server; it is evaluated and saved beside the model."""

    @model_validator(mode="before")
    @classmethod
    def _read_names(cls, value: Any) -> Any:
        """Take a list of names in the place of a number."""
        return read_names(value, MAX_WORKERS) if isinstance(value, Mapping) else value

    @property
    def worker_names(self) -> tuple[str, ...]:
        """The names of all workers, sorted."""
        return default_names(self.workers) if self.names is None else tuple(self.names)

    @property
    def honest_names(self) -> tuple[str, ...]:
        """The names of the workers that follow the protocol: the first ones."""
        return self.worker_names[: self.workers - self.byzantine.count]

    @property
    def byzantine_names(self) -> tuple[str, ...]:
        """The names of the workers that attack: the last ones."""
        return self.worker_names[self.workers - self.byzantine.count :]

    @property
    def selection(self) -> Selection:
        """The selection of workers, as the protocol asks it."""
        return self.participation.selection(self.workers, self.f)

    @property
    def quorum(self) -> int:
        """Pushes without which no round closes.

        Unless it is set: as many as leave room for f silent workers, or the fewest more with which the
        condition of the rule holds; all that a round can have where it holds with none.
        """
        if self.server.quorum is not None:
            return self.server.quorum
        least = self.participation.quorum(self.workers, self.f)
        most = self.participation.round_size(self.workers, self.f)
        return next((quorum for quorum in range(least, most) if self._keeps(quorum)), max(least, most))

    def _keeps(self, quorum: int) -> bool:
        """Whether the condition of the rule holds for all numbers of rows that this quorum allows."""
        rows = self.participation.row_counts(self.workers, self.f, quorum)
        return all(self.aggregator.requires(n, self.f) is None for n in rows)

    def resolved(self) -> dict[str, Any]:
        """Every setting with its value, in plain types; `loads` makes an equal configuration of it."""
        return self.model_dump(mode="python")


def groups(model: type[BaseModel] = RunConfig, path: str = "") -> dict[str, str | None]:
    """Paths where a name stands for a whole group, with the name that is there by default."""
    found: dict[str, str | None] = {}
    for name, field in model.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, Group):
                found |= {join(path, name): mark.default} if mark.named else {}
                found |= {join(join(path, name), inner): default for inner, default in mark.below.items()}
    for name, section in sections(model).items():
        found |= groups(section, join(path, name))
    return found if path else found | aggregator_groups()


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file."""
    return {"$schema": DIALECT, **RunConfig.model_json_schema(mode="validation")}
