"""Emitters of deployments: options that they take, and `render(config, options)`, which returns files.

Every file says at its top what it is and how it was made, and one of them is README.md with the commands
that a person needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from varangian.config import RunConfig
from varangian.deploy.plan import IN_THE_IMAGE, SERVER, WORKER, Places, Plan, Resources, make_plan, needs
from varangian.protos.text import escape

LONGEST = 1 << 16
"""Characters of a line of a comment."""


@dataclass(frozen=True)
class File:
    """A file to be written."""

    path: str
    """Relative to the folder of the deployment."""
    text: str
    mode: int = 0o644


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a deployment has beside the settings of its run."""

    name: str = "varangian"
    """Of the run, for the names of an engine: letters a to z, digits and hyphens."""
    image: str = "varangian"
    worker: Resources = WORKER
    server: Resources = SERVER
    made_by: str = "varangian deploy"
    """The command that makes these files again."""
    variables: bool = False

    def plan(self, config: RunConfig, places: Places = IN_THE_IMAGE) -> Plan:
        """The tasks of the run with these resources."""
        return make_plan(config, places=places, worker=self.worker, server=self.server)


class Emitter(Protocol):
    """`render` of an engine's module."""

    def __call__(self, config: RunConfig, options: Options) -> Sequence[File]:
        """The files of a deployment.

        Raises:
            ConfigError: the engine cannot carry out such a run.
        """
        ...


IMAGE = "in the image, or mounted by a change of these files"
"""Where the tasks of engines with containers find what they need."""


def needs_section(config: RunConfig, where: str) -> str:
    """The part of a README about what tasks have to find where they run; empty if there is nothing.

    Args:
        config: of the run.
        where: they look for it.
    """
    if not (found := needs(config)):
        return ""
    lines = "".join(f"- {text.replace('`', '')}\n" for text in found)
    return f"\n## What the tasks need\n\nThere has to be, {where}:\n\n{lines}"


def comment(*lines: str) -> str:
    """Lines as a comment of YAML or of a shell, without characters that a reader of YAML refuses."""
    return "".join(f"# {escape(' '.join(line.splitlines()), LONGEST)}".rstrip() + "\n" for line in lines)
