"""Resumption of a run in its folder: which run, with which settings, and from which checkpoint.

Nothing of the folder is changed here but its lock, and what cannot be used is named. The run goes on when
`ServerRun.open` is given what `resume` returns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varangian.config import RunConfig, load
from varangian.config.yaml_text import dump
from varangian.files import by_own_name, settings_file, user_path
from varangian.launch.checkpoints.changes import FIXED, Change, changes, learning_rates, problems, refused
from varangian.launch.checkpoints.folder import CheckpointFolder, facts_of
from varangian.launch.checkpoints.lock import FolderLock, has_ended
from varangian.launch.checkpoints.resumed import Resumed
from varangian.launch.membership.members_file import MembersFile
from varangian.launch.output.chain import BRANCH, digest, head_of
from varangian.launch.output.manifest import own_code
from varangian.launch.output.run_folder import MANIFEST, RESULT, ROUNDS
from varangian.launch.result import Note, RunError
from varangian.registry import ConfigError
from varangian.server.participation import PARTICIPATION
from varangian.state_file import StateFile, StateFileError, unflatten

SHOWN = 8
"""Names of workers in a sentence."""
IGNORED = ("varangian", "python")
"""Facts that are written down, and that alone are no reason to say that bits may differ."""


class RunOver(RunError):
    """A run that has no rounds left; nothing is wrong with it."""


def settings_of(
    folder: Path,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    *,
    whole: bool = False,
) -> RunConfig:
    """The configuration of the run in a folder, with other settings on top, as `load` takes them.

    Raises:
        RunError: it is no folder of a run.
        ConfigError: with every problem found.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} should be the folder of a run that can go on. There is no such folder")
    path = settings_file(folder)
    if not path.is_file():
        raise RunError(f"{folder} should be the folder of a run that can go on. It has no {path.name}")
    return load(path, overrides, environ, whole=whole)


def find_run(config: RunConfig, *, whatever: bool = False, over: bool = False) -> Path | None:
    """The newest run below `output` that can go on with this configuration; None if there is none.

    It has rounds left; or it is the newest, and its server was killed after it had written the result,
    before it had ended: a supervisor that starts the server again should not begin another run.

    Args:
        config: whose settings that matter are those of the run.
        whatever: take the newest run with rounds left, whatever its settings are.
        over: take one without rounds left, too.
    """
    output = user_path(config.output)
    try:
        names = [path for path in output.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return None
    found = [(settings_file(path), path) for path in names]
    began = [((path / MANIFEST).stat().st_mtime, path) for file, path in found if _is_run(file, path)]
    newest = True
    for _, path in sorted(began, reverse=True):
        if (rounds := _rounds_of(path, config, whatever)) is None:
            continue
        # The newest one also if it has none left, and its server was killed before it had ended.
        if over or _done(path) < rounds or (newest and not has_ended(path)):
            return path
        newest = False
    return None


def with_seed_of(config: RunConfig, before: RunConfig) -> RunConfig:
    """The configuration with the server's seed of the run, which was drawn when it began."""
    if config.server.seed is not None or before.server.seed is None:
        return config
    server = config.server.model_copy(update={"seed": before.server.seed})
    return config.model_copy(update={"server": server})


def resume(
    config: RunConfig, folder: Path, note: Note, *, force: bool = False, at_end: bool = False
) -> tuple[RunConfig, Resumed]:
    """Lock the folder of a run, and choose the checkpoint that the run goes on from.

    Args:
        config: to go on with.
        folder: of the run.
        note: takes sentences about what is done.
        force: go on although settings have changed, no checkpoint can be used, or a server on another
            machine has not said that it ended.
        at_end: whether to go on also from a checkpoint after the last round, of a server that was killed
            before it had ended: its workers may have left, so that no round can be done again.

    Returns:
        The configuration, which has the seed of the server where none was set; and what goes on.

    Raises:
        ConfigError: settings have changed that rounds which are done may have depended on.
        RunOver: all rounds are done.
        RunError: the folder cannot be used, or another server works in it.
    """
    folder = by_own_name(folder)
    before = settings_of(folder)
    config = with_seed_of(config, before)
    found = changes(before, config)
    wrong = refused(found, config)
    if wrong := [change for change in wrong if change.path in FIXED or not force]:
        raise ConfigError(problems(wrong))
    checkpoints, members = CheckpointFolder(folder), MembersFile.read(folder)
    if (done := _done(folder)) >= config.rounds and (
        (ended := has_ended(folder)) or not (at_end and config.rounds in checkpoints.rounds())
    ):
        if not ended:  # so that the next start is that of another run
            FolderLock.take(folder, note, force=force, least=_least_epoch(checkpoints)).release()
        raise RunOver(f"all {done} rounds of {folder} are done; add rounds=N to go on")
    lock = FolderLock.take(folder, note, force=force, least=_least_epoch(checkpoints))
    try:
        choice = _choose(checkpoints, folder, config, force, at_end)
        for sentence in choice.skipped:
            note(f"warning: {sentence}")
        if (problem := learning_rates(before, config, choice.round)) and not force:
            raise ConfigError([problem])
        plain = None if choice.file is None else choice.file.plain
        other = {} if plain is None else _other_facts(plain, config)
        code = _changed_code(folder, config)
        documents = {f"config.epoch-{lock.epoch}.yaml": dump(config.resolved()).encode()} if found else {}
        resumed = Resumed(
            folder,
            lock,
            choice.round,
            None if choice.file is None else unflatten(choice.file.plain["state"], choice.file.tensors),
            plain,
            revoked=_revoked(folder, choice.round),
            members=members,
            documents=documents,
            record=_record(found, documents, other, code, choice.skipped),
            parent=_written_as(plain, folder),
        )
    except BaseException:
        lock.release()
        raise
    for sentence in _sentences(resumed, config, found, other, code):
        note(sentence)
    return config, resumed


@dataclass(frozen=True)
class _Choice:
    """The checkpoint to go on from."""

    file: StateFile | None
    """None where there is none: round 0 begins again."""
    skipped: tuple[str, ...]

    @property
    def round(self) -> int:
        return 0 if self.file is None else int(self.file.plain["round"])


def _choose(
    checkpoints: CheckpointFolder, folder: Path, config: RunConfig, force: bool, at_end: bool
) -> _Choice:
    """The newest checkpoint that is sound and of this run.

    Raises:
        RunError: there are some, and none can be used.
    """
    reasons = dict[Path, str]()
    for round in checkpoints.rounds():
        file = checkpoints.file(round)
        if round > config.rounds or (round == config.rounds and not at_end):
            continue  # its run is over, and ends the same from an earlier one
        try:
            found = checkpoints.read(round)
        except (StateFileError, OSError) as error:
            reasons[file] = (
                error.reason if isinstance(error, StateFileError) else error.strerror or str(error)
            )
            continue
        if (reason := _foreign(found.plain, folder, config)) is not None:
            reasons[file] = reason
            continue
        return _Choice(found, _left_out(reasons, folder, f"round {round} is used"))
    if reasons and not force:
        told = "; ".join(f"{path.relative_to(folder)}: {reason}" for path, reason in reasons.items())
        raise RunError(
            f"no checkpoint of {folder} can be used. {told}. Add --force to begin with round 0 again"
        )
    return _Choice(None, _left_out(reasons, folder, "round 0 begins again"))


def _left_out(reasons: Mapping[Path, str], folder: Path, instead: str) -> tuple[str, ...]:
    return tuple(
        f"{path.relative_to(folder)} was left out: {reason}; {instead}" for path, reason in reasons.items()
    )


def _foreign(plain: Mapping[str, Any], folder: Path, config: RunConfig) -> str | None:
    """Why a sound checkpoint is none of this run; None if it is one."""
    run, participation = plain.get("run"), PARTICIPATION.name(config.participation)
    if run not in (folder.name, *parents(folder)) and not _is_behind(plain.get("record"), folder):
        return f"it is of the run {run}"
    if plain.get("participation") != participation:
        return f"it is of a run with the participation {plain.get('participation')}"
    return None


def _is_behind(place: Any, folder: Path) -> bool:
    """Whether the record of a run has the lines that a checkpoint names: so of a folder with a new name."""
    match place:
        case {"bytes": int(size), "digest": str(expected)} if size > 0:
            pass
        case _:
            return False
    with suppress(OSError), (folder / ROUNDS).open("rb") as record:
        if os.fstat(record.fileno()).st_size >= size:
            lines = record.read(size)
            return lines.endswith(b"\n") and head_of(lines[lines.rfind(b"\n", 0, -1) + 1 :]) == expected
    return False


def _written_as(plain: Mapping[str, Any] | None, folder: Path) -> str:
    """The run that has written a checkpoint, if that was under another name; otherwise empty."""
    run = folder.name if plain is None else str(plain["run"])
    return "" if run == folder.name else run


def _is_run(file: Path, path: Path) -> bool:
    return file.is_file() and (path / MANIFEST).is_file()


def _rounds_of(folder: Path, config: RunConfig, whatever: bool) -> int | None:
    """The rounds that a run should have; None if it does not go on with this configuration."""
    with suppress(ConfigError, RunError, OSError):
        before = settings_of(folder)
        if whatever:
            return before.rounds
        if not refused(changes(before, with_seed_of(config, before)), config):
            return config.rounds
    return None


def _done(folder: Path) -> int:
    """The number of rounds of a run that has a result."""
    try:
        return int(json.loads((folder / RESULT).read_bytes())["rounds"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0


def failure(folder: Path) -> str | None:
    """The reason why the run in a folder has ended by itself before its last round; None if it has not."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / RESULT).read_bytes())
        return str(found["reason"]) if found["outcome"] == "failed" else None
    return None


def _least_epoch(checkpoints: CheckpointFolder) -> int:
    """The least number of the next start, should the lock have been lost."""
    epochs = [0]
    for round in checkpoints.rounds():
        with suppress(StateFileError, OSError, TypeError):
            epochs.append(int(checkpoints.head(round)["epoch"]) + 1)
    return max(epochs)


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of rounds, in the order in which they were written."""
    try:
        with (folder / ROUNDS).open("rb") as lines:
            for line in lines:
                with suppress(ValueError):  # the last one, which was cut off
                    if isinstance(found := json.loads(line), dict) and isinstance(found.get("round"), int):
                        yield found
    except OSError:
        return


def last_round(folder: Path) -> int | None:
    """The last round on record; None without one."""
    return max((record["round"] for record in _records(folder)), default=None)


def _revoked(folder: Path, following: int) -> tuple[str, ...]:
    """Workers whose certificate was found to be revoked in rounds that are done again."""
    again = (record for record in _records(folder) if record["round"] >= following)
    return tuple(sorted({name for record in again for name in record.get("revoked") or ()}))


def parents(folder: Path) -> tuple[str, ...]:
    """The run that the one in a folder is a branch of, the run of which that is one, and so on."""
    with suppress(OSError, ValueError):
        match json.loads((folder / MANIFEST).read_bytes()).get(BRANCH):
            case {"runs": [*runs]}:
                return tuple(str(run) for run in runs)
            case _:
                pass
    return ()


def _changed_code(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Digests of files of the user's code that are others than when the run began, as [before, now]."""
    before: Mapping[str, Any] = {}
    with suppress(OSError, ValueError):
        before = json.loads((folder / MANIFEST).read_bytes()).get("own_code") or {}
    return _others(before, {**before, **own_code(config.resolved())}, before)


def _other_facts(plain: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Facts that are others than those of a checkpoint, as [before, now]."""
    before, now = plain.get("facts"), facts_of(config)
    return _others(before if isinstance(before, Mapping) else {}, now, now)


def _others(before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: [before.get(name), now[name]] for name in names if before.get(name) != now[name]}


def _record(
    found: Sequence[Change],
    documents: Mapping[str, bytes],
    other: Mapping[str, Any],
    code: Mapping[str, Any],
    skipped: Sequence[str],
) -> dict[str, Any]:
    """What the record of rounds says of the start: what applies of changes, other facts and checkpoints."""
    known = {
        "changes": [change.plain() for change in found],
        "config": {name: digest(content) for name, content in documents.items()},
        "facts": dict(other),
        "own_code": dict(code),
        "skipped": list(skipped),
    }
    return {name: value for name, value in known.items() if value}


def _sentences(
    resumed: Resumed,
    config: RunConfig,
    found: Sequence[Change],
    other: Mapping[str, Any],
    code: Iterable[str],
) -> Iterator[str]:
    """Sentences about a run that goes on."""
    folder, round, last = resumed.folder, resumed.round, last_round(resumed.folder)
    if resumed.state is None:
        which = "that can be used" if resumed.record.get("skipped") else "yet"
        yield f"{folder}: there is no checkpoint {which}: round 0 begins again"
    else:
        whole = f"{folder}: all {round} rounds are done; workers that come back are told so"
        yield whole if round == config.rounds else f"{folder} goes on with round {round} of {config.rounds}"
    if (last is not None and last >= round > 0) and (
        config.backend == "processes" and not config.selection.fresh_only
    ):
        name = PARTICIPATION.name(config.participation)
        again = f"round {round} is" if last == round else f"rounds {round} to {last} are"
        yield (
            f"{again} done again, with other vectors: with {name} the numbers are not those of a run "
            f"without interruption; no vector that was counted before round {round} is lost"
        )
    if resumed.members is not None:
        names, f = resumed.members.workers, resumed.members.f
        told = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        yield f"its workers are those of their last change: {told}; f = {f}"
    if found:
        yield f"settings have changed: {'; '.join(map(str, found))}"
    others = {name: values for name, values in other.items() if name not in IGNORED}
    if others:
        told = ", ".join(f"{name} was {before} and is {now}" for name, (before, now) in others.items())
        yield f"warning: {told}: numbers may differ from those of an uninterrupted run in their last bits"
    for file in code:
        yield f"warning: {file} has changed since the run began: earlier rounds were done with other code"
