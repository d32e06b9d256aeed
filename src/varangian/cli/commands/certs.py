"""`varangian certs`: an authority, the bundles of a cluster, and revocation."""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from varangian.cli.main import OK, CommandError
from varangian.cli.views.terminal import align
from varangian.cli.worker_names import configured_names
from varangian.pki.authority import (
    HOME,
    PREFIX,
    SERVER,
    Authority,
    AuthorityError,
    Issued,
    days_left,
    request_certificate,
)
from varangian.pki.x509 import LARGEST_REQUEST, MissingExtra, key_fingerprint
from varangian.protos.identity.bundle import KEY, REQUEST, Bundle, BundleError, Role
from varangian.protos.identity.revocation import fingerprint
from varangian.protos.network.address import AddressError, parse_certificate_host

GOOD_FOR = 1 / 3
"""`--keep` keeps a bundle that has at least this part of its time left."""
SOON = 3.0
"""Days before its end from which `list` says when a certificate expires."""


def command(args: argparse.Namespace) -> int:
    """Make, list or revoke certificates."""
    actions = {
        "init": init,
        "issue": issue,
        "request": request,
        "sign": sign,
        "list": show,
        "revoke": revoke,
    }
    with command_errors(args):
        actions[args.action](args)
    return OK


@contextmanager
def command_errors(args: argparse.Namespace) -> Generator[None]:
    """Turn errors of the authority and of the disk into the one sentence that a command ends with."""
    try:
        yield
    except (AuthorityError, MissingExtra) as error:
        raise CommandError(str(error)) from error
    except BrokenPipeError:
        raise  # the reader of the output has left: that is for `main` to end quietly
    except OSError as error:
        where = error.filename or getattr(args, "dir", args.action)
        raise CommandError(f"{where}: {error.strerror}") from error


def init(args: argparse.Namespace) -> None:
    path = Path(args.dir)
    if args.keep and (path / HOME / KEY).exists():
        print(f"kept the authority in {Authority(path).home}")
        return
    made = Authority.create(path, args.days)
    print(f"made the authority {made.home}; keep key.pem on this machine: it can make anybody a member")
    print(f"its cluster is {made.cluster()}, as every certificate says")
    if args.keep:
        return  # a script goes on by itself
    print(f"next: varangian certs issue {args.dir} --server HOST...")
    print(f"      varangian certs issue {args.dir} w00 w01 ...")


def issue(args: argparse.Namespace) -> None:
    authority = Authority(Path(args.dir))
    role = _role(args)
    names = list(_names(args, role))
    hosts = parse_hosts(args.server or ())
    into = Path(args.into) if args.into else authority.path
    if args.revoke_old and not (args.force or args.keep):
        raise CommandError("--revoke-old is for a bundle that is replaced. Add --force")
    for name in names:
        if args.keep and _still_good(authority, into / name, role, hosts):
            print(f"kept {into / name}")
            continue
        force = args.force or args.keep
        made = authority.issue(
            name, role, hosts=hosts, days=args.days, into=into, force=force, revoke_old=args.revoke_old
        )
        print(f"made {into / name}, valid until {format_date(made.ends)}")


def request(args: argparse.Namespace) -> None:
    folder = Path(args.into or ".") / args.name
    fresh, mark = request_certificate(folder, args.name)
    print(f"{'made' if fresh else 'kept'} the key {folder / KEY}; it stays on this machine")
    print(f"made the request {folder / REQUEST} for the public key {mark}")
    print(f"next: bring it to the authority, varangian certs sign DIR {args.name} {REQUEST}")


def sign(args: argparse.Namespace) -> None:
    authority = Authority(Path(args.dir))
    role = _role(args)
    if args.revoke_old and not args.force:
        raise CommandError("--revoke-old is for a certificate that is replaced. Add --force")
    with Path(args.request).open("rb") as stream:
        asked = stream.read(LARGEST_REQUEST + 1)
    into = Path(args.into) if args.into else authority.path
    made = authority.issue(
        args.name,
        role,
        hosts=parse_hosts(args.server or ()),
        days=args.days,
        into=into,
        force=args.force,
        request=asked,
        revoke_old=args.revoke_old,
    )
    print(f"signed for the {role.value} {args.name} the public key {key_fingerprint(asked)}")
    print(f"made {into / args.name}, valid until {format_date(made.ends)}")
    print(f"next: copy the files in it beside {KEY}, on the machine that made the request")


def show(args: argparse.Namespace) -> None:
    authority = Authority(Path(args.dir))
    revoked = authority.revoked()
    rows = [
        (one.name, one.role, one.fingerprint[:PREFIX], format_date(one.ends), _state(one, revoked))
        for one in authority.issued()
    ]
    header = ("name", "role", "fingerprint", "until", "state")
    print("\n".join(align([header, *rows], gap="  ")))


def revoke(args: argparse.Namespace) -> None:
    authority = Authority(Path(args.dir))
    if (args.name is None) is (args.fingerprint is None):
        raise CommandError("say what to revoke: a name, for all its certificates, or --fingerprint DIGITS")
    if args.name is None:
        one, told = authority.revoke_one(args.fingerprint)
        print(f"revoked the certificate {one.fingerprint[:PREFIX]} of {one.name}")
    else:
        found, told = authority.revoke(args.name)
        many = "certificate" if len(found) == 1 else f"{len(found)} certificates"
        print(f"revoked the {many} of {args.name}")
    for path in told:
        print(f"wrote {path}; a server that runs with it refuses what was revoked within two seconds")
    print(f"a server on another machine needs a copy of {Path(args.dir) / HOME / 'revoked'} in its bundle")


def _role(args: argparse.Namespace) -> Role:
    """The role that the arguments of a new certificate ask for."""
    if args.operator:
        return Role.OPERATOR
    return Role.WORKER if args.server is None else Role.SERVER


def _names(args: argparse.Namespace, role: Role) -> Iterator[str]:
    """The holders to make bundles for: named, or all workers of a kind in a configuration."""
    names = [text for text in args.names if "=" not in text]
    settings = [text for text in args.names if "=" in text]
    if role is Role.SERVER:
        if args.claim or len(names) > 1 or settings:
            raise CommandError(
                "a server has one name. Issue the bundles of workers in a command of their own."
            )
        yield names[0] if names else SERVER
    elif role is Role.OPERATOR:
        if args.claim or not names or settings:
            raise CommandError("an operator has a name. Type it: varangian certs issue DIR --operator NAME")
        yield from dict.fromkeys(names)
    elif args.claim and not names:
        yield from configured_names(args.claim, settings)
    elif names and not args.claim and not settings:
        yield from dict.fromkeys(names)
    else:
        raise CommandError(
            "say who gets a certificate: names (w00 w01), or --claim honest|byzantine with the settings of "
            "the run (workers=10), or --server HOST..."
        )


def parse_hosts(names: Iterable[str], option: str = "--server") -> list[str]:
    """Parse the host names of a server for its certificate.

    Raises:
        CommandError: one is an address with a port, or no host name.
    """
    try:
        return [parse_certificate_host(name) for name in names]
    except AddressError as error:
        raise CommandError(f"{option} {error}") from None


def _still_good(authority: Authority, path: Path, role: Role, hosts: list[str]) -> bool:
    """Whether a bundle is valid for long enough, for these hosts and under this authority."""
    try:
        bundle = Bundle.load(path, role)
    except BundleError:
        return False
    left = bundle.ends - time.time()
    return (
        left > GOOD_FOR * (bundle.ends - bundle.begins)
        and bundle.ca == (authority.home / "cert.pem").read_bytes()
        and set(hosts) <= set(bundle.hosts)
        and fingerprint(bundle.certificate) not in authority.revoked()
    )


def _state(one: Issued, revoked: frozenset[str]) -> str:
    days = days_left(one)
    if one.fingerprint in revoked:
        return "revoked"
    if days < 0:
        return "expired"
    return f"expires in {days:.1f} days" if days < SOON else f"valid, {days:.0f} days left"


def format_date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
