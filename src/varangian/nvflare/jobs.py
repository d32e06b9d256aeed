"""Jobs of NVFlare: that they find Varangian where it is installed."""

from __future__ import annotations

from typing import Any

PACKAGE = "varangian"


def use_installed(job: Any) -> None:
    """Let a job use the package that is installed at the server.

    Without it NVFlare copies the source of an aggregator, and what that imports, into the job.

    Args:
        job: a recipe, or a `FedJob`.

    Raises:
        ValueError: it is neither.
    """
    fed_job = getattr(job, "_job", job)
    config: Any = getattr(fed_job, "job", None)
    packages: list[str] | None = getattr(config, "app_packages", None)
    if packages is None:
        raise ValueError(f"job: should be a recipe or a FedJob of NVFlare. Found {type(job).__name__}.")
    if PACKAGE not in packages:
        fed_job.set_app_packages([*packages, PACKAGE])
