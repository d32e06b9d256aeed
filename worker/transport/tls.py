"""TLS at the worker: its bundle, taken up again when the files change, and credentials for channels."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import grpc

from varangian.protos.identity.bundle import CA, CERTIFICATE, KEY, Bundle, BundleError, Role, find_bundle
from varangian.protos.identity.watched_files import WatchedFiles
from varangian.protos.network.descriptors import Spare

SPARE = Spare()
"""A descriptor in reserve, one for all workers of a process."""

Proof: TypeAlias = str | Bundle
"""The credentials of a worker: a token, or over TLS its certificate."""


def load_worker_bundle(path: Path, name: str) -> Bundle:
    """Load the bundle of a worker: `path` is the bundle, or a directory of bundles.

    Raises:
        BundleError: it cannot be used.
    """
    return Bundle.load(find_bundle(path, name), Role.WORKER)


def watch_bundle(bundle: Bundle) -> WatchedFiles[Bundle]:
    """The newest usable bundle on the disk, of the same worker in the same cluster."""

    def read() -> Bundle:
        found = Bundle.load(bundle.path, Role.WORKER)
        if (found.name, found.cluster) != (bundle.name, bundle.cluster):
            raise BundleError(
                f"{bundle.path / CERTIFICATE} should be the certificate of {bundle.name} in the cluster "
                f"{bundle.cluster}. Found that of {found.name} in {found.cluster}."
            )
        return found

    paths = [bundle.path / name for name in (CA, CERTIFICATE, KEY)]
    return WatchedFiles(paths, read, SPARE, value=bundle)


def has_changed(bundle: Bundle) -> bool:
    """Whether the files of a bundle have changed since it was read, or cannot be read."""
    try:
        files = [(bundle.path / name).read_bytes() for name in (CA, CERTIFICATE, KEY)]
    except OSError:
        return True
    return files != [bundle.ca, bundle.certificate, bundle.key]


def credentials(bundle: Bundle) -> grpc.ChannelCredentials:
    """Credentials for channels to a server of the same authority."""
    return grpc.ssl_channel_credentials(bundle.ca, bundle.key, bundle.certificate)
