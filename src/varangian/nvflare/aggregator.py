"""An aggregator of NVFlare with a robust rule, for models and for differences of models."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvflare.apis.fl_constant import FLMetaKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from varangian.federated.arrays import Layout, median_metrics
from varangian.federated.claims import checked_cap, read_claims
from varangian.federated.models import Models
from varangian.federated.rounds import Round
from varangian.protos.text import escape

UNKNOWN = "unknown site"
CLAIMED, MOST_CLAIMED = "steps", 0.4
"""Weights that are what sites claim, and how much of the weight the f heaviest of them have at most."""
NAMES = {ParamsType.FULL: "model", ParamsType.DIFF: "difference"}


@dataclass
class _Result:
    """What a site sent in this round."""

    arrays: dict[str, NDArray[Any]]
    layout: Layout
    kind: ParamsType
    metrics: Mapping[str, Any]
    tensors: dict[str, torch.dtype]
    """Types of those parameters that came as tensors."""


class Robust(ModelAggregator):
    """A robust rule in the place of the weighted average, as `aggregator` of a recipe.

    The results of a round are kept until all are there. What cannot be used is dropped and counted as one
    of the f, and never raises: another layout or kind of parameters than those of most sites, numbers that
    are not finite. How many steps a site claims has no influence unless `weights` says so.

    A round without an update, because too few results are left, leaves the model as it is.

    Args:
        aggregator: by name, as `nnm+trimmed_mean`, or as a mapping of a configuration.
        f: how many sites may be Byzantine.
        weights: how much each site weighs, by its name, on any scale; all the same by default. A site that
            is not there weighs nothing, and is left out. "steps" is how many steps each site claims.
        weights_cap: the share of the weight that the f heaviest sites have at most; by default 0.4 of what
            is claimed, and no cap for weights by name.
        seed: of mixings that draw at random.
        log: a file at the server to which the record of each round is appended as a line of JSON.

    Raises:
        ConfigError: the aggregator is none.
        ValueError: the rule cannot be used here, or a weight is no positive number.
    """

    def __init__(
        self,
        aggregator: str | Mapping[str, object] = "nnm+trimmed_mean",
        f: int = 1,
        weights: Mapping[str, float] | str | None = None,
        weights_cap: float | None = None,
        seed: int = 0,
        log: str | None = None,
    ) -> None:
        super().__init__()
        # Under the names of the arguments: a job is exported by them.
        self.aggregator = aggregator
        self.f = f
        self.weights = weights
        self.weights_cap = weights_cap
        self.seed = seed
        self.log = log
        if isinstance(weights, str) and weights != CLAIMED:
            raise ValueError(
                f"weights: should be numbers by name of site, or {CLAIMED!r}. Found {weights!r}."
            )
        self._known = None if weights is None or isinstance(weights, str) else dict(weights)
        for site, weight in (self._known or {}).items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"weights.{site}: should be a positive number. Found {weight!r}.")
        cap = weights_cap if weights_cap is not None or weights != CLAIMED else MOST_CLAIMED
        self._models = Models(
            aggregator,
            f,
            seed=seed,
            log=None if log is None else Path(log),
            cap=checked_cap(cap, "weights_cap"),
        )
        self._claims: dict[str, Any] = {}
        self._results: dict[str, _Result] = {}
        self._dropped: dict[str, str] = {}
        self._absent: dict[str, str] = {}
        self._base: dict[str, NDArray[Any]] | None = None
        self._round = -1

    @property
    def last(self) -> Round | None:
        """The record of the last round."""
        return self._models.last

    @property
    def faults(self) -> Counter[str]:
        """How many results of each site were dropped."""
        return self._models.faults

    def reset_stats(self) -> None:
        self._results, self._dropped, self._absent, self._claims = {}, {}, {}, {}

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """As ScatterAndGather hands a result on: who sent it is what the server has put beside it."""
        self.fl_ctx = fl_ctx
        model = FLModelUtils.from_shareable(shareable, fl_ctx)
        model.meta["client_name"] = shareable.get_peer_prop(ReservedKey.IDENTITY_NAME, None)
        self.accept_model(model)
        return True

    def accept_model(self, model: FLModel) -> None:
        """Keep the result of a site, or say why not."""
        site = _site(model)
        if site in self._results or site in self._dropped:
            return
        if self._known is not None and site not in self._known:
            self._absent[site] = "has no weight"
            return
        self._claims[site] = (model.meta or {}).get(FLMetaKey.NUM_STEPS_CURRENT_ROUND)
        try:
            self._results[site] = _read(model)
        except Exception as error:
            self._dropped[site] = escape(
                str(error) if isinstance(error, ValueError) else type(error).__name__
            )

    def aggregate_model(self) -> FLModel:
        """The model of the rule; a difference of nothing where there is no update."""
        number = self._number()
        results, dropped, absent = self._results, self._dropped, self._absent
        weigh = read_claims(self._claims) if self.weights == CLAIMED else self._known
        self.reset_stats()
        layout, kind, found = _usual(results)
        if not found:
            absent.update(dict.fromkeys(results, "sent other arrays than most sites"))
            results = {}
        for site, result in [*results.items()]:
            if result.kind != kind:
                dropped[site] = f"is a {NAMES[result.kind]} where most sites sent a {NAMES[kind]}"
            elif wrong := layout.problem(result.arrays):
                dropped[site] = wrong
            else:
                continue
            del results[site]
        base = self._from(layout, results) if kind == ParamsType.FULL else None
        arrays, sites = self._models.aggregate(
            number,
            layout,
            {site: result.arrays for site, result in results.items()},
            base,
            dropped=dropped,
            absent=absent,
            weigh=weigh,
        )
        if arrays is None:
            return self._answer({}, ParamsType.DIFF, {})
        if kind == ParamsType.FULL:
            self._base = arrays
        types = results[sites[0]].tensors
        params: dict[str, Any] = {
            name: torch.from_numpy(array).to(types[name]) if name in types else array
            for name, array in arrays.items()
        }
        return self._answer(params, kind, median_metrics([results[site].metrics for site in sites]))

    def _answer(self, params: Mapping[str, Any], kind: ParamsType, metrics: Mapping[str, Any]) -> FLModel:
        record = self._models.last
        if record is not None and self.fl_ctx is not None:
            (self.warning if record.dropped or record.error else self.info)(str(record))
        self._models.report()
        return FLModel(params_type=kind, params=dict(params), metrics=dict(metrics) or None)

    def _from(self, layout: Layout, results: Mapping[str, _Result]) -> dict[str, NDArray[Any]]:
        """What models are measured from: the model of the last round, before that their median."""
        if self._base is not None and layout.problem(self._base) is None:
            return self._base
        return layout.middle([result.arrays for result in results.values()])

    def _number(self) -> int:
        """The number of the round, as the workflow has it."""
        context: FLContext | None = self.fl_ctx
        said = None if context is None else context.get_prop(AppConstants.CURRENT_ROUND)
        self._round = said if isinstance(said, int) else self._round + 1
        return self._round


def _site(model: FLModel) -> str:
    """The name that the server put beside a result; that of a message is none of its own."""
    name = (model.meta or {}).get("client_name")
    return name if isinstance(name, str) and name else UNKNOWN


def _usual(results: Mapping[str, _Result]) -> tuple[Layout, ParamsType, bool]:
    """The layout and the kind of more than half of the results, and whether there is one."""
    kinds = Counter((result.layout, result.kind) for result in results.values())
    for (layout, kind), count in kinds.most_common(1):
        if 2 * count > len(results):
            return layout, kind, True
    return Layout(()), ParamsType.DIFF, False


def _read(model: FLModel) -> _Result:
    """The result of a site as arrays.

    Raises:
        ValueError: it is no model.
    """
    if not isinstance(model.params, Mapping) or not model.params:
        raise ValueError("has no parameters")
    arrays: dict[str, NDArray[Any]] = {}
    tensors: dict[str, torch.dtype] = {}
    for name, value in model.params.items():
        if not isinstance(name, str):
            raise ValueError("has a parameter without a name")
        if callable(getattr(value, "materialize", None)):  # on disk, where the recipe says so
            value = value.materialize()
        if isinstance(value, torch.Tensor):
            tensors[name] = value.dtype
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        if not isinstance(value, np.ndarray | np.generic | float | int):
            raise ValueError(f"{name[:80]!r} should be an array. Found {type(value).__name__}")
        arrays[name] = np.asarray(value)
    arrays = dict(sorted(arrays.items()))
    metrics = model.metrics if isinstance(model.metrics, Mapping) else {}
    return _Result(arrays, Layout.of(arrays), model.params_type, metrics, tensors)
