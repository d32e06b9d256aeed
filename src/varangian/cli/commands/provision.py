"""`varangian certs cluster`: certificates, secret and tokens of a whole cluster, by one command.

DIR/authority   the authority
DIR/server      the server's bundle, and the secret that tokens are made with
DIR/honest      bundles and tokens of the honest workers
DIR/monitor     the token of the metrics port, and the certificate of the authority to check the server by
DIR/byzantine   bundles and tokens of the Byzantine workers
DIR/apart/w00   with --apart, in the place of DIR/honest: bundle and token of one honest worker

What is there and does not end soon is kept, and who was revoked gets no new certificate, so the command can
run before each start of the cluster. Each folder can be a volume of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
from pathlib import Path

from varangian.cli.commands.certs import command_errors, init, issue, parse_hosts
from varangian.cli.main import OK, CommandError
from varangian.cli.tokens import read_or_make_secret, write_tokens
from varangian.config import load
from varangian.files import write_atomically
from varangian.pki.authority import PRIVATE, SERVER, Authority
from varangian.protos.identity.bundle import CA, METRICS_TOKEN, Bundle, BundleError, Role
from varangian.protos.identity.revocation import fingerprint

DAYS, AUTHORITY_DAYS = 30.0, 1825.0
BETWEEN = re.compile(r"[\s,]+")
"""Separators of hosts."""


def command(args: argparse.Namespace) -> int:
    """Make whatever a cluster lacks."""
    with command_errors(args):
        provide(args)
    return OK


def provide(args: argparse.Namespace) -> None:
    """Make what is missing or ends soon; nothing, where settings or hosts are wrong.

    Raises:
        CommandError: no host is named.
        ConfigError: the settings are not those of a run.
    """
    config = load(args.config, args.settings, os.environ, whole=False)
    hosts = parse_hosts(filter(None, BETWEEN.split(args.hosts)), "--hosts")
    if not hosts:
        raise CommandError(f"--hosts should name the server, as server.example. Found {args.hosts!r}")
    path = Path(args.dir)
    honest = config.honest_names
    apart = {f"apart/{name}": (name,) for name in honest}
    folders = {**(apart if args.apart else {"honest": honest}), "byzantine": config.byzantine_names}
    init(argparse.Namespace(dir=args.dir, days=AUTHORITY_DAYS, keep=True))
    _issue(args.dir, path / SERVER, [], hosts)
    authority = Authority(path)
    for folder, names in folders.items():
        counting = [name for name in names if not _revoked(authority, path / folder / name)]
        if counting:
            _issue(args.dir, path / folder, counting, None)
    key = read_or_make_secret(path / SERVER / "secret")
    for folder, names in folders.items():
        write_tokens(names, key, path / folder / "tokens")
    _provide_monitor(path)


def _provide_monitor(path: Path) -> None:
    """What whoever collects metrics needs; a copy of the token is at the server, which compares it."""
    token = path / SERVER / METRICS_TOKEN
    if not token.exists():
        write_atomically(token, secrets.token_hex(32).encode() + b"\n", PRIVATE)
        print(f"made the token of the metrics port in {token}")
    monitor = path / "monitor"
    monitor.mkdir(parents=True, exist_ok=True)
    write_atomically(monitor / METRICS_TOKEN, token.read_bytes(), PRIVATE)
    write_atomically(monitor / CA, (path / SERVER / SERVER / CA).read_bytes(), PRIVATE)


def _revoked(authority: Authority, bundle: Path) -> bool:
    """Whether a bundle is revoked: this command never replaces one, only the operator can."""
    try:
        found = fingerprint(Bundle.load(bundle, Role.WORKER).certificate) in authority.revoked()
    except BundleError:
        return False
    if found:
        again = f"varangian certs issue {authority.path} {bundle.name} --force --into {bundle.parent}"
        print(f"left {bundle}, which is revoked. To take {bundle.name} in again: {again}")
    return found


def _issue(authority: str, into: Path, names: list[str], hosts: list[str] | None) -> None:
    """The bundles of workers; or that of the server, where there are hosts."""
    asked = {
        "dir": authority,
        "into": str(into),
        "names": names,
        "server": hosts,
        "claim": None,
        "days": DAYS,
    }
    issue(argparse.Namespace(**asked, operator=False, keep=True, force=False, revoke_old=False))
