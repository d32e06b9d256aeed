"""The report of the wire benchmark as plain tables, one for each setting."""

from __future__ import annotations

from varangian.bench.wire.report import Line, Report, Setting
from varangian.cli.views.terminal import align

HEADERS = ("GB/s", "x TCP", "x gRPC", "CPU s/GB", "server", "workers", "payloads", "faults/GB")
LEGEND = (
    "GB/s: 1e9 bytes of float32, whatever was on the wire. x TCP: ratio to raw TCP just before and after.\n"
    "x gRPC: ratio to raw bytes over gRPC in the same turn, with nothing checked, stored or counted.\n"
    "CPU s/GB: of the server and of the one process with all workers. payloads: memory of the server at\n"
    "most, beyond what it held with its rows before the first round, as a multiple of one gradient and\n"
    "for all workers together. faults/GB: pages that the kernel had to find for the server. Medians of\n"
    "the rounds."
)


def plain(report: Report) -> str:
    return "\n".join([*(_table(setting) + "\n" for setting in report.found), *remarks(report)])


def _table(setting: Setting) -> str:
    rows = [(setting.title, *HEADERS), *((line.title, *cells(line)) for line in setting.lines)]
    return "\n".join(align(rows, left=(0,)))


def cells(line: Line) -> tuple[str, ...]:
    """The numbers of a line, or the reason why it has none."""
    speed = line.speed
    if speed is None:
        return (f"{'FAILED' if line.status == 'failed' else 'not measured'}: {line.reason}",)
    return (
        f"{speed.gigabytes_per_second:.2f}",
        f"{speed.x_tcp:.2f}",
        "-" if speed.x_grpc is None else f"{speed.x_grpc:.2f}",
        f"{speed.cpu:.2f}",
        f"{speed.server_cpu:.2f}",
        f"{speed.workers_cpu:.2f}",
        f"{speed.payloads:.2f}",
        f"{speed.server_faults:.0f}",
    )


def remarks(report: Report) -> list[str]:
    """The legend, the machine and the versions of other libraries."""
    machine = report.machine
    load = f"load average {machine['load_at_start']} before and {machine['load_at_end']} after"
    where = f"loopback; {machine['cpu']}, cores: {machine['cores']}; grpc {machine['grpc']}; {load}"
    return [LEGEND, where, *(f"{name}: {version}" for name, version in report.peers.items())]
