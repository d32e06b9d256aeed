"""The settings of a run, as a tree of pydantic models: their types, defaults and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from varangian.aggregators import Aggregator
from varangian.aggregators.base import tolerance
from varangian.aggregators.numeric.shares import WeightCap, least_favourable, weights_by_name
from varangian.aggregators.spec import aggregator_from, spec_of
from varangian.config.aggregator import aggregator_groups, aggregator_schema
from varangian.config.errors import sections
from varangian.config.fields import Group, many_of, of_fields, of_registry, of_settings
from varangian.config.schema import DIALECT, JsonSchema, with_references
from varangian.config.worker_names import default_names, read_names, read_weights
from varangian.protos.network.address import parse_listen_host
from varangian.protos.payloads.encoding import FLOAT32, Dtype, RowDtype
from varangian.registry import ConfigError, Problem, join
from varangian.server.participation import DEFAULT, PARTICIPATION, Participation
from varangian.server.protocol.state import Selection
from varangian.server.training.ema import Ema
from varangian.server.training.gate import Gate
from varangian.server.training.optimizers import OPTIMIZERS, Optimizer
from varangian.trackers import TRACKERS, Tracker
from varangian.worker.attacks import ATTACKS, Attack, Sight
from varangian.worker.data import DATASETS, Source
from varangian.worker.data.partition import PARTITIONS, Partition
from varangian.worker.simulation.availability import AVAILABILITY, Availability
from varangian.worker.simulation.delays import DELAYS, Delay
from varangian.worker.training.buffers.vector import BufferMode
from varangian.worker.training.losses import LOSSES, Loss
from varangian.worker.training.metrics import METRICS, Metric, OwnMetric
from varangian.worker.training.models import MODELS, Model


def _aggregator(value: Any, f: int) -> Aggregator:
    return aggregator_from(value, "", f=f)


def _as_aggregator(built: Any, f: int) -> Aggregator:
    """An aggregator, or a rule that a program gave in its place."""
    return built if isinstance(built, Aggregator) else Aggregator(built, f=f)


AUTO: Final = "auto"
"""The value of a setting that is found out while a run goes on, or from where it takes place."""


def _seconds_or_auto(value: Any, number: ValidatorFunctionWrapHandler) -> Any:
    """A positive number, or `auto`; in one sentence, where pydantic has one for each of the two."""
    try:
        return value if value == AUTO else number(value)
    except ValidationError:
        rule = f"should be a number of seconds above 0, or {AUTO}"
        raise ConfigError([Problem("", rule, value)]) from None


def _of_one_vector(value: Optimizer | None) -> Optimizer | None:
    """An optimizer that can step one vector, whatever the shapes in it."""
    if value is not None and value.shaped:
        rule = "should be an optimizer whose steps do not depend on the shapes of parameters"
        raise ConfigError([Problem("", rule, OPTIMIZERS.name(value), "As adamw or sgd.")])
    return value


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
    """Local training: the settings of every worker."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Samples per worker and step."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Worker momentum: m <- momentum m + (1 - momentum) g; 0 sends plain gradients."""
    local_steps: Annotated[int, Field(ge=1)] = 1
    """C, local steps that a worker takes before it pushes: y <- y - gamma g(y), from the model x. It sends
    (x - y) / gamma: with one step the gradient, with more the sum of the gradients along the way."""
    local_lr: Annotated[float, Field(gt=0)] | None = None
    """gamma, the learning rate of local steps in every round; null is the server's of that round, which
    follows `optimizer.schedule`."""
    inner: Annotated[
        Optimizer | None, of_registry(OPTIMIZERS, None, none=True), AfterValidator(_of_one_vector)
    ] = None
    """The inner optimizer of local steps, as in DiLoCo: {adamw: {lr: 0.001}}. It keeps its state from round
    to round, its schedule goes by local steps (`rounds` times `local_steps` of them), and the worker sends
    x - y, not divided by a learning rate; `momentum` is 0 then unless given. null takes plain steps."""
    per_process: Annotated[int, Field(ge=1)] | None = None
    """Workers in one process; null spreads them over the cores."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Torch threads in each worker process."""
    device: str = "cpu"
    """The torch device on which workers compute, as cpu or cuda."""
    patience: Annotated[float, Field(gt=0)] | None = None
    """Seconds without a reachable server after which a worker gives up; null never gives up. While it
    waits, it logs the reason once a minute."""
    state: str | None = AUTO
    """The folder in which a worker keeps its momentum and what else it needs to go on after a crash; null
    keeps nothing. auto is `workers` in the run folder, and for `varangian worker`
    $XDG_STATE_HOME/varangian, as ~/.local/state/varangian."""
    heartbeat: str | None = None
    """Heartbeat file of `varangian worker` for health checks: its process touches it every second while it
    answers, also while it waits for the server."""
    traces: bool = False
    """Spans of each computation and push for OpenTelemetry, below the span of their round where the server
    has `server.traces`; sent where the environment variables `OTEL_*` say, with the extra `otel`."""

    @model_validator(mode="before")
    @classmethod
    def _inner_without_momentum(cls, value: Any) -> Any:
        """No momentum over pseudo-gradients unless it is asked for: the server's optimizer has it."""
        if isinstance(value, Mapping) and value.get("inner") is not None:
            return {"momentum": 0.0, **value}
        return value


class Checkpoints(Section):
    """Checkpoints: files with the state of the server, from which a run goes on after a crash."""

    every: Annotated[int, Field(ge=1)] | None = None
    """Rounds from one checkpoint to the next. null is 50 for real servers; `backend=simulate` and sweeps,
    which repeat a run with the same numbers, then write none."""
    keep: Annotated[int, Field(ge=1)] = 3
    """The newest checkpoints that are kept. The best, and one from before the last alarms, are kept too."""
    best: str | None = "accuracy"
    """The score by which a checkpoint is the best; of `loss`, and of names that end in `loss` or `error`,
    the lowest. Without an accuracy, `accuracy` is `loss`; null keeps none for its score."""


class Server(Section):
    """The server: its addresses, when it closes a round, and how it stores vectors."""

    host: Annotated[str, AfterValidator(parse_listen_host)] = "127.0.0.1"
    """Address to listen on: a name or an address of this machine; `*` is all of its addresses."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of gRPC; 0 takes any free port."""
    data_port: Annotated[int, Field(ge=0, le=65535)] | None = 0
    """Port of the data channel, which carries payloads outside gRPC, on the same `host`. 0 takes any free
    port; null sends payloads over gRPC, as for a worker that cannot reach the port: recommended beyond a
    local network. The results are the same."""
    enrol_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port, on the same `host`, where `varangian join` asks for a certificate; of `varangian server` with
    certificates alone. 0 takes any free port; null takes no requests."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of a page about the run and of metrics for Prometheus, read-only and over HTTP, at
    `metrics_host`. 0 takes any free port; null has neither."""
    metrics_host: Annotated[str, AfterValidator(parse_listen_host)] = "127.0.0.1"
    """Address of the metrics port. Beyond this machine it needs `metrics_token`, or the certificates of
    `varangian server`: then it speaks HTTPS, and an operator's certificate opens it, too."""
    metrics_token: str | None = None
    """File with a token, 16 characters or more, that callers of the metrics port show as a bearer token."""
    traces: bool = False
    """A trace of each round for OpenTelemetry, sent where the environment variables `OTEL_*` say; needs the
    extra `otel`."""
    heartbeat: str | None = None
    """Heartbeat file for health checks: the server touches it every second while it answers, so its age
    tells whether the server is alive."""
    quorum: Annotated[int, Field(ge=1)] | None = None
    """The fewest pushes with which a round can close. null is, by `participation`: workers - f for sync,
    buffer - f for async, participants - f for fedavg, the smallest neighbourhood - f for asap, or as many
    more as the rule needs, up to all of them; and 1 for fedlaavg, where missing workers have rows too."""
    deadline: Annotated[
        Annotated[float, Field(gt=0)] | Literal["auto"], WrapValidator(_seconds_or_auto)
    ] = 60.0
    """Seconds until the deadline of a round: it closes without the missing workers if it has the quorum.
    auto follows the times at which vectors arrived in the last rounds."""
    deadline_floor: Annotated[float, Field(gt=0)] = 5.0
    """Seconds: the least deadline that `auto` sets."""
    deadline_ceiling: Annotated[float, Field(gt=0)] = 600.0
    """Seconds: the longest deadline that `auto` sets, and that of the first rounds."""
    wait_factor: Annotated[float, Field(ge=1)] | None = 3.0
    """Adaptive waiting: if the quorum, and at least all but f workers, have answered t seconds after the
    start of a round, it waits for the others until wait_factor * t. null waits until the deadline; async
    always does, since its `buffer` is the number of vectors to wait for."""
    wait_floor: Annotated[float, Field(ge=0)] = 10.0
    """Seconds after the start of a round before which `wait_factor` does not close it."""
    wait_rounds: Annotated[int, Field(ge=1)] | None = 3
    """Consecutive rounds that a connected worker may miss. After that the server waits for it in only one
    round per ten deadlines, until it is in time again; its vectors count whenever they are in time. null
    always waits, as sync does with `availability`, where absences are planned."""
    shortfall: Literal["wait", "skip", "fail"] = "wait"
    """At the deadline without a quorum: wait on, skip to the next round without an update, or fail."""
    absent_after: Annotated[float, Field(ge=2)] = 2.0
    """Seconds after its last connection has closed for which a round still waits for a worker. More gives a
    worker that crashed the time to start again."""
    stop_grace: Annotated[float, Field(ge=0)] = 5.0
    """Seconds for which a server that is told to stop waits for the open round, if it has a vector."""
    checkpoint: Checkpoints | None = Checkpoints()
    """Checkpoints, from which `--resume` goes on; null writes none."""
    fragments: Annotated[int, Field(ge=1)] = 1
    """P, fragments of the parameters, as in Streaming DiLoCo: round r has fragment r modulo P, of which
    alone vectors are pushed, and whose parameters alone move. The rule weighs workers by the latest vectors
    of all fragments. With participation=sync."""
    gate: Annotated[Gate | None, of_fields(Gate, "a gate on a held-out loss")] = None
    """A gate on a held-out loss: a vector whose step alone would raise the loss on the samples of
    `evaluate.validation` is left out of its round, at most f of them; {} has the defaults. It proves no
    fault. null measures nothing."""
    keep_rows: Annotated[int, Field(ge=0)] = 0
    """The last rounds whose vectors are kept in the run folder, so that they can be computed again."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Torch threads in the server; the same number gives the same bits. Once all vectors of a round have
    arrived, kernels whose bits do not depend on the number use every core."""
    rows: RowDtype = FLOAT32
    """Type in which vectors are stored until a round closes; bfloat16 takes half the memory and rounds."""
    rows_folder: str | None = None
    """A folder on a disk where the vectors of a round lie in a file, for more of them than memory holds,
    with the same results; null keeps them in memory."""
    memory: Literal["rows", "window"] = "rows"
    """`rows` stores whole vectors. `window` stores a few blocks of columns of each: the slowest worker then
    sets the pace, and only coordinate-wise rules and the mean work. `simulate` always stores whole rows,
    with the same numbers."""
    tls: bool | None = None
    """TLS of `varangian run`, with certificates made for it; null uses it unless `host` is loopback."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    """Random seed of mixings, as of bucketing. null is `seed` in `varangian run`, so that an experiment can
    be repeated, and a fresh secret in `varangian server`: a worker that knew it would know the buckets."""


class Simulation(Section):
    """The simulation: how `backend=simulate` computes; without a meaning for other backends."""

    gradients: Literal["exact", "batched"] = "exact"
    """`exact` computes one worker after the other, with the bits of `processes`. `batched` computes all
    workers of a round together, several times as fast for small models: each vector differs from the exact
    one by rounding, less than 1e-5 of its length. A model that cannot be computed so is computed as with
    `exact`, and a note says so."""


class Wire(Section):
    """The encoding of vectors on the network."""

    dtype: Dtype = FLOAT32
    """Type of the numbers in a push. bfloat16 halves the traffic and keeps 8 bits of each number. int8
    takes a quarter: blocks of 256 numbers have one scale, and are rounded at random, right on average."""


class Byzantine(Section):
    """The Byzantine workers of an experiment; the server is not told which they are."""

    count: Annotated[int, Field(ge=0)] = 0
    """Number of Byzantine workers: the last `count` names."""
    attack: Annotated[Attack | None, of_registry(ATTACKS, None, none=True)] = None
    """The attack that they mount; your own as `module:Class`."""
    knows: Sight | None = None
    """The honest gradients that an attacker sees: its own, those of all attackers, or those of all honest
    workers; null is the least that the attack needs."""
    data: Literal["share", "all"] = "share"
    """The training samples of Byzantine workers: a share, as `partition` deals one to every worker; or all
    samples, while only the honest workers have shares, so that none is lost to training."""


class Evaluation(Section):
    """Evaluation of the model on held-out data, at the server."""

    every: Annotated[int, Field(ge=1)] = 10
    """Rounds from one evaluation to the next; the last round is always evaluated."""
    validation: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Validation split: the share of the training data that is held out of training, and evaluated beside
    the test data as `validation_loss` and so on, to choose settings by; null holds nothing out."""


CHECKPOINT_EVERY = 50
"""Rounds from one checkpoint of a real server to the next, unless it is told another number."""
MAX_WORKERS = 10_000
NUMBER_OR_NAMES: JsonSchema = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": MAX_WORKERS},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
    ]
}

WEIGHTS: JsonSchema = {
    "anyOf": [
        {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0}},
        {"type": "string"},
        {"type": "null"},
    ]
}


class RunConfig(Section):
    """The configuration of a run."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    """Random seed of the run; all of its random streams are derived from it."""
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS), WithJsonSchema(NUMBER_OR_NAMES)] = 15
    """n, the number of workers; or a list of their names, as [alice, bob]."""
    names: list[str] | None = None
    """Names of the workers, sorted; null is w00, w01 and so on. A list in `workers` sets both."""
    f: Annotated[int, Field(ge=0)] = 3
    """The number of workers that may be Byzantine; rules and mixings use it unless they set their own."""
    rounds: Annotated[int, Field(ge=1)] = 200
    """Rounds of the run: steps of the server."""
    backend: Literal["processes", "simulate"] = "processes"
    """`processes` are real ones that speak over gRPC; `simulate` runs all in one, with the same numbers."""
    output: str = "runs"
    """The folder in which run folders are made."""
    aggregator: Annotated[
        Aggregator,
        Group(_aggregator, lambda built: spec_of(built), aggregator_schema, "flag", fit=_as_aggregator),
    ] = named_default("flag")
    """The aggregation rule; or mixings and a rule, as `nnm+krum` or, with fields, `{mix: [...], rule:
    ...}`; your own as `module:Class`. `fedlaavg`, `fedavg` and `asap`, with a rule among their fields,
    stand for that participation."""
    weights: Annotated[
        dict[str, float] | Literal["samples"] | None,
        BeforeValidator(read_weights),
        WithJsonSchema(WEIGHTS),
    ] = None
    """What the vector of each worker weighs, by name, on any scale, as sizes of data sets: {alice: 190,
    bob: 17834}, or a YAML or JSON file with that; `samples` takes the number of training samples that
    `partition` deals to each. f becomes the weight of the f heaviest workers. null weighs all the same."""
    weights_cap: Annotated[WeightCap | None, of_fields(WeightCap, "a cap of weights")] = None
    """Truncation of `weights` at the largest U with which the ceil(alpha n) heaviest workers have at most
    alpha_star of the weight, as {alpha_star: 0.3}; alpha is f / n unless given. null takes them as they
    are."""
    participation: Annotated[Participation, of_registry(PARTICIPATION, DEFAULT)] = named_default(DEFAULT)
    """The workers whose vectors make a round: all, some that are selected, or the first that are ready."""
    model: Annotated[Model, of_registry(MODELS, "mlp")] = named_default("mlp")
    """The model to train; your own as `module:function`."""
    data: Annotated[Source, of_registry(DATASETS, "digits")] = named_default("digits")
    """The data set; your own as `module:function`."""
    loss: Annotated[Loss, of_registry(LOSSES, "cross_entropy")] = named_default("cross_entropy")
    """The loss function that training minimises; your own as `module:function`."""
    buffers: BufferMode = "refuse"
    """Buffers of the model that training changes, as the statistics of BatchNorm. `robust` sends them along
    with each vector, and the server takes the median of each number; with `local` each worker has its own,
    and the server those that the model is made with; `refuse` is an error where a model has some."""
    metrics: Annotated[tuple[Metric | OwnMetric, ...] | None, many_of(METRICS)] = None
    """Metrics on held-out data besides the loss, as [accuracy, class_accuracy, "module:function"]; null is
    the accuracy where samples have classes."""
    partition: Annotated[Partition, of_registry(PARTITIONS, "shared")] = named_default("shared")
    """Partition of the training samples among workers; your own as `module:Class`."""
    availability: Annotated[Availability, of_registry(AVAILABILITY, "always")] = named_default("always")
    """The rounds in which each worker takes part; in the others it neither pulls nor pushes."""
    delays: Annotated[Delay, of_registry(DELAYS, "none")] = named_default("none")
    """Delays of workers: each waits so long before it pushes; `simulate` advances virtual time instead."""
    worker: Workers = Workers()
    optimizer: Annotated[Optimizer, of_settings(OPTIMIZERS, "sgd", ("schedule", "warmup"))] = named_default(
        "sgd"
    )
    """The server's optimizer, which steps along the aggregate: a `name` and its settings, as {name: adam,
    lr: 0.001}."""
    server: Server = Server()
    simulate: Simulation = Simulation()
    wire: Wire = Wire()
    byzantine: Byzantine = Byzantine()
    evaluate: Evaluation = Evaluation()
    ema: Annotated[Ema | None, of_fields(Ema, "an average of the model")] = None
    """Moving average of the model over rounds, at the server; evaluated and saved beside the model."""
    trackers: Annotated[tuple[Tracker, ...] | None, many_of(TRACKERS)] = None
    """Where the numbers of the run are sent, besides its run folder, as [tensorboard, {wandb: {project:
    mine}}]; your own as `module:Class`. One that fails or hangs never stops a run."""

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
    def worker_weights(self) -> dict[str, float] | None:
        """What the vector of each worker weighs, after truncation; None where all weigh the same.

        A worker without a weight has the least of all. Numbers of samples are not known before the data
        is there.
        """
        given, names = self.weights, self.worker_names
        if not given or isinstance(given, str):
            return None
        return weights_by_name(given, names, self.weights_cap, self.f)

    def why_broken(self, rows: int) -> str | None:
        """Why the rule promises nothing for so many rows of whichever workers; None where it does."""
        weights = self.worker_weights
        if weights is None:
            return self.aggregator.requires(rows, self.f)
        parts = (*self.aggregator.mix, self.aggregator.rule)
        most = max(self.f, *(tolerance(part) or 0 for part in parts))
        return self.aggregator.requires(
            rows, self.f, least_favourable([*weights.values()], min(rows, self.workers), most)
        )

    @property
    def checkpoint_every(self) -> int | None:
        """Rounds from one checkpoint to the next; None for a run that writes none."""
        checkpoint = self.server.checkpoint
        if checkpoint is None or checkpoint.every is not None:
            return None if checkpoint is None else checkpoint.every
        return None if self.backend == "simulate" else CHECKPOINT_EVERY

    @property
    def least_deadline(self) -> float:
        """Seconds: the deadline of every round, or the least that it can set itself."""
        server = self.server
        return server.deadline_floor if server.deadline == AUTO else server.deadline

    @property
    def selection(self) -> Selection:
        """The selection of workers, as the protocol asks it."""
        return self.participation.selection(self.workers, self.f)

    @property
    def quorum(self) -> int:
        """The fewest pushes with which a round can close.

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
        return all(self.why_broken(n) is None for n in rows)

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
    schema = RunConfig.model_json_schema(mode="validation")
    return {"$schema": DIALECT, **with_references(schema, ATTACKS)}
