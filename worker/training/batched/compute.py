"""Batched computation of workers: what `WorkerCompute` computes one by one, in one call for a round.

n  workers     k  of them, at once     b  samples of each     d  parameters
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from varangian.own_classes import is_own
from varangian.plugins import InputError, describe_error
from varangian.state_file import Tree
from varangian.structured_logs import event
from varangian.worker.attacks import TOGETHER, DataAttack, MountedAttack, on_vectors
from varangian.worker.data.samples import Samples, map_tensors, tensors
from varangian.worker.training.batched.gradients import choose_method
from varangian.worker.training.compute import View, WorkerCompute, purpose_of
from varangian.worker.training.error_feedback import DeltaEncoder
from varangian.worker.training.flat import DIVERGED, LARGEST, check_finite
from varangian.worker.transport.results import Declined

log = logging.getLogger(__name__)

AT_ONCE = 256 << 20
"""Bytes of activations of workers that compute together on a CPU; on a GPU half of what is free."""
AGREEMENT = 1e-3
"""The part of a gradient by which it may differ in the trial: far more than what rounding changes, and far
less than another computation would."""
ALL = "@all"
"""The name of the only part of the history; no worker has it."""
TRIAL = 2
"""Workers that compute together in the trial."""


class CannotBatch(Exception):
    """A model whose gradients cannot be computed together; the text is a sentence for the user."""


class BatchedCompute:
    """Computes the vectors of all workers of a round at once, into the rows of one tensor on the device.

    Batches, momentum, local steps, attacks and refusals are those of `WorkerCompute`; a vector differs from
    its by rounding only. Where a part of the workers cannot compute together, as with a batch that the
    model does not take, they compute one by one, so each declines for itself.

    Args:
        worker_compute: of the same task; its model and data are used, its history is not.

    Raises:
        CannotBatch: when the model does not compute the same together as one by one.
    """

    def __init__(self, worker_compute: WorkerCompute) -> None:
        self._worker_compute = worker_compute
        task = self._task = worker_compute.task
        if task.inner is not None:
            raise CannotBatch("with worker.inner each worker has an optimizer of its own")
        self._trainer = worker_compute.trainer
        if self._trainer.buffers is not None:
            raise CannotBatch("the buffers of the model are others for each worker")
        n, d = len(task.workers), worker_compute.layout.numel
        self._places = {name: place for place, name in enumerate(task.workers)}
        self._honest = torch.zeros(n, d, dtype=torch.float32, device=self._trainer.device)
        """The last honest vector of each worker, which is its momentum; never what an attack made of it."""
        self._rows = self._honest.unbind()
        self._rounds: dict[str, int] = {}
        """The round of each of them."""
        self._scratch = torch.zeros_like(self._honest)
        self._deltas = DeltaEncoder(task.wire)
        self._told = set[str]()
        """Why workers could not compute together, as far as it was logged."""
        attack = task.attack if task.byzantine else None
        self._mounted = MountedAttack(attack, task.sight) if on_vectors(attack) else None
        self._poisoning = attack if isinstance(attack, DataAttack) else None
        with worker_compute.exclusive():
            self._trainer.keep_data_on_device()
            self._most = self._trainer.samples_at_once(AT_ONCE)
            self._method = choose_method(self._trainer, task.seed)
            self._try()

    def vectors(
        self, names: Iterable[str], round: int, parameters: Tensor
    ) -> Mapping[str, Tensor | Declined | None]:
        """As `WorkerCompute.vectors`, on the device.

        A vector is the caller's until the same worker is asked again, and must not be written to.
        """
        names = [*names]
        taking = [name for name in names if self._task.timetable.available(name, round)]
        with self._worker_compute.exclusive():
            seen = self._seen(names, taking, round)
            parameters = parameters.to(self._honest.device)
            failed = self._advance({*taking, *seen}, round, parameters)
            view = self._view(round, [name for name in seen if name not in failed])
            # An attacker may look at a worker whose vector is still on its way.
            rows = self._honest.clone().unbind() if self._task.sight == "all" else self._rows
            found: dict[str, Tensor | Declined | None] = dict.fromkeys(names)
            for name in taking:
                own = rows[self._places[name]]
                found[name] = failed.get(name) or self._sent(name, round, own, view, parameters)
            if len(taking) < len(names) and self._task.remembers_others:
                for name in sorted({*names}.difference(taking).intersection(self._task.byzantine)):
                    self._worker_compute.follow(self._mounted, name, view, round, parameters)
            return found

    def confirm(self, name: str, round: int) -> None:
        """As `WorkerCompute.confirm`."""
        with self._worker_compute.exclusive():
            self._deltas.confirm(name, round)

    def parts(self) -> tuple[str, ...]:
        """One part: the vectors of all workers lie together."""
        return (ALL,)

    def state(self, part: str) -> Tree:
        """As `WorkerCompute.state`.

        Honest vectors are kept without momentum, too, where attackers see them: computed again beside
        others, they would be rounded otherwise.
        """
        with self._worker_compute.exclusive():
            kept = self._task.momentum > 0 or self._mounted is not None
            return {
                "rounds": dict(self._rounds) if kept else {},
                "honest": self._honest if kept else None,
                "deltas": {name: self._deltas.state(name) for name in self._task.workers},
                "attack": {key: self._worker_compute.memory(self._mounted, key) for key in self._attackers},
            }

    def restore(self, part: str, tree: Any) -> None:
        """As `WorkerCompute.restore`."""
        tree = on_device(tree, self._honest.device)
        with self._worker_compute.exclusive():
            self._rounds = dict(tree["rounds"])
            if tree["honest"] is not None:
                self._honest.copy_(tree["honest"])
            for name in self._task.workers:
                self._deltas.restore(name, tree["deltas"][name])
            for key in self._attackers:
                self._worker_compute.remember(self._mounted, key, tree["attack"][key])

    @property
    def _attackers(self) -> Sequence[str]:
        """The names under which attackers remember."""
        if self._mounted is None:
            return ()
        return (TOGETHER,) if self._mounted.shared else self._task.byzantine

    def _seen(self, names: Sequence[str], taking: Sequence[str], round: int) -> Sequence[str]:
        """Workers whose vectors attackers see beyond their own, where there is an attacker to see them."""
        task = self._task
        looking = (name in task.byzantine if name in taking else task.listens(name) for name in names)
        return task.seen(round) if self._mounted is not None and any(looking) else ()

    def _view(self, round: int, names: Sequence[str]) -> View | None:
        if not names:
            return None
        rows = self._stacked(names)
        if is_own(self._task.attack):
            rows = rows.clone()  # code of the user may write to it
        return self._worker_compute.view(round, names, rows)

    def _sent(
        self, name: str, round: int, row: Tensor, view: View | None, parameters: Tensor
    ) -> Tensor | Declined | None:
        task = self._task
        byzantine = name in task.byzantine
        sent: Tensor | None = row
        try:
            if byzantine and self._mounted is not None:
                sent = self._worker_compute.attacked(self._mounted, name, round, row, view, parameters)
            if sent is not None and task.deltas:
                sent = self._deltas.encode(name, round, sent)
                if not byzantine:
                    check_finite(sent)
        except InputError as error:
            return Declined(str(error))
        return sent

    def _advance(self, names: Iterable[str], round: int, parameters: Tensor) -> dict[str, Declined]:
        """Compute the honest vectors of a round, as far as they are not there; what failed, by worker."""
        failed = dict[str, Declined]()
        for group in self._groups(name for name in names if self._is_due(name, round)):
            rows = self._scratch[: len(group)]
            failed |= self._sums(group, round, parameters, rows)
            if self._task.momentum > 0:
                rows.mul_(1 - self._task.momentum).add_(self._stacked(group), alpha=self._task.momentum)
            largest = rows.abs().amax(dim=1).tolist()
            failed |= {
                name: Declined(DIVERGED)
                for name, most in zip(group, largest, strict=True)
                if name not in failed and not most <= LARGEST
            }
            kept = [i for i, name in enumerate(group) if name not in failed]
            whole = len(kept) == len(group)
            self._put([group[i] for i in kept], rows if whole else rows[kept])
            self._rounds |= {group[i]: round for i in kept}
        return failed

    def _is_due(self, name: str, round: int) -> bool:
        """Whether a worker's vector of this round is still to be computed."""
        last = self._rounds.get(name)
        if last is not None and round < last and self._task.momentum > 0:
            raise ValueError(f"Rounds should not go back. Found round {round} of {name} after {last}.")
        return round != last

    def _groups(self, names: Iterable[str]) -> Iterator[list[str]]:
        """Workers with batches of one size, in order, no more at once than there is memory for."""
        groups = defaultdict[int, list[str]](list)
        for name in sorted(names, key=self._places.__getitem__):
            groups[self._worker_compute.batches.sizes[name]].append(name)
        for size, group in groups.items():
            most = max(1, self._most // size)
            for start in range(0, len(group), most):
                yield group[start : start + most]

    def _sums(
        self, group: Sequence[str], round: int, parameters: Tensor, rows: Tensor
    ) -> dict[str, Declined]:
        """As `WorkerCompute.local_steps` for each worker, into rows (k, d); what failed, by worker."""
        try:
            self._steps(group, round, parameters, rows)
        except Exception as error:
            if (reason := describe_error(error)) not in self._told:
                self._told.add(reason)
                log.info(
                    "round %d: %d workers compute one by one: %s",
                    round,
                    len(group),
                    reason,
                    extra=event("one_by_one", round=round),
                )
            return self._one_by_one(group, round, parameters.cpu(), rows)
        return {}

    def _one_by_one(
        self, group: Sequence[str], round: int, parameters: Tensor, rows: Tensor
    ) -> dict[str, Declined]:
        failed = dict[str, Declined]()
        for name, row in zip(group, rows, strict=True):
            try:
                row.copy_(self._worker_compute.local_steps(self._poison(name), name, round, parameters))
            except InputError as error:
                failed[name] = Declined(str(error))
        return failed

    def _steps(self, group: Sequence[str], round: int, parameters: Tensor, total: Tensor) -> None:
        gamma, step_rows = self._task.gamma(round), total
        here = parameters
        for step in range(self._task.local_steps):
            if step:
                here = torch.sub(parameters, total, alpha=gamma)
                step_rows = torch.empty_like(total)
            x, y = self._samples(group, round, step)
            purposes = [purpose_of(name, round, step) for name in group]
            self._method(here, x, y, purposes, step_rows)
            if step:
                total.add_(step_rows)

    def _samples(self, group: Sequence[str], round: int, step: int) -> tuple[Any, Any]:
        """The batches of workers, stacked: (k, b, ...) each tensor."""
        indices = self._worker_compute.batches.stacked(group, round, step)
        unflatten = partial(torch.unflatten, dim=0, sizes=tuple(indices.shape))
        x, y = (map_tensors(part, unflatten) for part in self._trainer.batch(indices.flatten()))
        for place, name in enumerate(group):
            if (poison := self._poison(name)) is not None:
                own_x, own_y = (map_tensors(part, lambda t, i=place: t[i].clone()) for part in (x, y))  # type: ignore[misc]
                bad = self._worker_compute.poisoned(poison, own_x, own_y, purpose_of(name, round, step))
                for stacked, own in zip((x, y), bad, strict=True):
                    put_samples(stacked, place, own)
        return x, y

    def _poison(self, name: str) -> DataAttack | None:
        return self._poisoning if name in self._task.byzantine else None

    def _stacked(self, names: Sequence[str]) -> Tensor:
        """The honest vectors of some workers, (k, d): a view where they lie one after the other."""
        places = [self._places[name] for name in names]
        if places[-1] - places[0] + 1 == len(places):
            return self._honest[places[0] : places[-1] + 1]
        return self._honest[places]

    def _put(self, names: Sequence[str], rows: Tensor) -> None:
        """Keep honest vectors, (k, d)."""
        places = [self._places[name] for name in names]
        if places and places[-1] - places[0] + 1 == len(places):
            self._honest[places[0] : places[-1] + 1] = rows
        elif places:
            self._honest[places] = rows

    def _try(self) -> None:
        """Compare a first gradient of two workers with the same one by one.

        Raises:
            CannotBatch: it fails or is another one.
        """
        parameters = self._worker_compute.initial()
        for group in self._groups(self._task.workers):
            pair = group[:TRIAL]
            rows, expected = torch.empty_like(self._honest[: len(pair)]), self._honest[: len(pair)].clone()
            if self._one_by_one(pair, 0, parameters, expected):
                continue  # their batches are too small for the model; others may have larger ones
            try:
                self._steps(pair, 0, parameters.to(rows.device), rows)
            except Exception as error:
                reason = str(error) if isinstance(error, InputError) else describe_error(error)
                raise CannotBatch(reason) from error
            apart = torch.linalg.vector_norm(rows - expected, dim=1)
            if not bool((apart <= AGREEMENT * torch.linalg.vector_norm(expected, dim=1)).all()):
                raise CannotBatch("the gradients of workers are others when they compute together")
            return


def on_device(tree: Any, device: torch.device) -> Any:
    """A tree with its tensors on this device."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, Mapping):
        return {key: on_device(value, device) for key, value in tree.items()}
    return [on_device(value, device) for value in tree] if isinstance(tree, list) else tree


def put_samples(samples: Samples, place: int, own: Samples) -> None:
    """Set the samples of one worker among those of all.

    Raises:
        ValueError: they are of another kind, so this worker has to compute alone.
    """
    for (_, tensor), (_, part) in zip(tensors(samples), tensors(own), strict=True):
        if part.shape != tensor.shape[1:] or part.dtype != tensor.dtype:
            raise ValueError(f"The samples should be {list(tensor.shape[1:])}. Found {list(part.shape)}.")
        tensor[place] = part
