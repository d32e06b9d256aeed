"""A run that goes on in its folder: where, and with which state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varangian.launch.checkpoints.lock import FolderLock
from varangian.launch.membership.members_file import MembersFile


@dataclass(frozen=True)
class Resumed:
    """A run that goes on in its folder, from a checkpoint or with round 0 again."""

    folder: Path
    lock: FolderLock
    """Of the folder, held by this process."""
    round: int = 0
    """The round that it goes on with."""
    state: Mapping[str, Any] | None = None
    """The state in the checkpoint of this round, as a tree; None begins with round 0 again."""
    checkpoint: Mapping[str, Any] | None = None
    """What that checkpoint says of itself."""
    revoked: tuple[str, ...] = ()
    """Workers whose certificate was revoked after this checkpoint, by the record of the rounds since."""
    members: MembersFile | None = None
    """The workers after their last change, which may be later than the checkpoint; None without one."""
    documents: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Documents of the folder besides those of the start, as other settings."""
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the record of the first round says of the start besides, as changed settings; as JSON has it."""
    parent: str = ""
    """The name under which the run has written the checkpoint, where it is another one: that of the run of
    which this is a branch, or that of its folder before."""
