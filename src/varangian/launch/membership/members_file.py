"""File of the members of a run: its workers after the last change, whatever becomes of the server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from varangian.files import write_atomically
from varangian.launch.result import RunError

NAME = "members.json"
VERSION = 1


@dataclass(frozen=True)
class MembersFile:
    """The workers of a run after the last change of them that was accepted."""

    workers: tuple[str, ...]
    f: int
    gone: Mapping[str, str] = field(default_factory=dict[str, str])
    """How each worker has left that is none any more."""
    changes: Sequence[Mapping[str, Any]] = ()
    """All changes, the oldest first, each with who has asked for it."""

    def write(self, run: Path) -> None:
        """Put it in the folder of a run, and on the disk.

        Raises:
            OSError: that cannot be.
        """
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n"
        write_atomically(run / NAME, text.encode(), 0o600)

    @classmethod
    def read(cls, run: Path) -> MembersFile | None:
        """That of a run; None if its workers were never changed.

        Raises:
            RunError: it cannot be used.
        """
        path = run / NAME
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} should say who the workers of the run are, and cannot be read: {error}"
            ) from error
        match found:
            case {
                "version": 1,
                "workers": [*workers],
                "f": int(f),
                "gone": {**gone},
                "changes": [*changes],
            }:
                return cls(
                    tuple(map(str, workers)),
                    f,
                    {str(name): str(how) for name, how in gone.items()},
                    changes,
                )
            case _:
                raise RunError(f"{path} should say who the workers of the run are. Found another document")
