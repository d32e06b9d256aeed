"""This machine: versions, open files, processors, memory, clock and GPU."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import varangian
from varangian import __version__
from varangian.cli.commands.doctor.finding import Finding, fail, note, passed
from varangian.protos.network import descriptors
from varangian.resources import available_memory, cores, readable

PACKAGES = ("torch", "grpcio", "protobuf")
FEW = 10
"""Workers of a server that should be possible everywhere."""
RAISE = "Raise the limit with `ulimit -n` in the shell that starts it."
ENOUGH = 1 << 30
"""Bytes of memory: a process with torch takes a third of it before it has a model."""
DAY = 86400.0
DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Files that are there with the driver of a GPU: of NVIDIA, of AMD, and in WSL."""
HIDES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
SLOWER = (
    "Rules are slower in plain torch. To have them, install Varangian again where there is a C compiler, "
    "as with `pip install --force-reinstall --no-deps .` in its sources."
)
GPU_PATIENCE = 120.0
"""Seconds for a child process to import torch and to compute one sum; a broken driver may hang."""
TRIAL = """
import json, sys, warnings
found = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        import torch
        found["built"] = torch.version.cuda or getattr(torch.version, "hip", None)
        if torch.cuda.is_available():
            found["gpus"] = [
                [torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)]
                for i in range(torch.cuda.device_count())
            ]
        if sys.argv[1]:
            found["sum"] = torch.ones(4, device=sys.argv[1]).sum().item()
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
found["warnings"] = [" ".join(str(one.message).split()) for one in caught]
print("\\n" + json.dumps(found))
"""


def check_versions() -> Finding:
    found = [f"varangian {__version__}", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return fail("versions", f"{name} should be installed", "Install varangian again.")
    return passed("versions", ", ".join(found))


def check_files() -> Finding:
    """The limit of open files, and the number of workers of a server for which it is enough."""
    limit = descriptors.limit()
    workers = descriptors.most_workers(limit)
    found = f"{limit} may be open, enough for a server with {workers} workers"
    return passed("files", found) if workers >= FEW else note("files", found, RAISE)


def check_cores() -> Finding:
    """Processors that this process may use, and of how many."""
    usable, whole = cores(), os.cpu_count() or 1
    few = f"{usable:g} of the {whole} of this machine, as its container or control group allows"
    return passed("cores", few if usable < whole else f"{whole}")


def check_kernels() -> Finding:
    """The kernels in C, without which rules on large models are slow."""
    try:
        from varangian.aggregators.kernels.library import VARIABLE, KernelsRefused, level, opened
    except Exception as error:  # of torch: whatever is broken in it
        return fail("kernels", f"torch cannot be imported: {error}", "Install torch again.")
    try:
        loaded, why = opened()
        if loaded is not None:
            return passed("kernels", f"in C, version v{level()} for this processor")
    except (KernelsRefused, OSError) as error:
        return fail("kernels", str(error), "Unset VARANGIAN_KERNELS, or install Varangian again.")
    todo = "Unset the variable to have them." if os.environ.get(VARIABLE) == "none" else SLOWER
    return note("kernels", f"there are none in C: {why}", todo)


def check_memory() -> Finding:
    room = available_memory()
    if room is None:
        return passed("memory", "the system does not say how much is free")
    found = f"{readable(room)} available"
    if room < ENOUGH:
        return note(
            "memory",
            found,
            "That is little: each process with torch takes about 0.4 GB. "
            "Close programs, or raise the limit of the container.",
        )
    return passed("memory", found)


def check_clock(now: float) -> Finding:
    """The clock, which should be later than the files that were installed by it."""
    shown = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))} UTC"
    installed = Path(varangian.__file__).stat().st_mtime
    if now < installed - DAY:
        there = time.strftime("%Y-%m-%d", time.gmtime(installed))
        return fail(
            "clock",
            f"the clock shows {shown}, and Varangian was installed on {there}",
            "Set the clock: with a wrong one certificates seem to be invalid.",
        )
    return passed("clock", shown)


def check_gpu(device: str | None, patience: float = GPU_PATIENCE) -> Iterator[Finding]:
    """The GPU, tried in a child process: where a run computes on one, or a driver is there.

    Args:
        device: of torch on which a run is to compute; None where nobody has said.
        patience: seconds until a device counts as broken.
    """
    driver = next((path for path in DRIVERS if os.path.exists(path)), None)
    wanted = device if device not in (None, "cpu") else None
    if wanted is None and driver is None:
        return
    bad = note if wanted is None else fail
    try:
        code, printed = _try_device(wanted or "", patience)
    except subprocess.TimeoutExpired:
        found_no_end = f"torch found no end with it within {patience:g} s"
        yield bad("gpu", found_no_end, "Does `nvidia-smi` answer? If not, start the machine again.")
        return
    try:
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        yield bad("gpu", f"torch ended with code {code} when it looked for it", "Install torch again.")
        return
    yield judge_gpu(found, wanted, driver)


def _try_device(device: str, patience: float) -> tuple[int, str]:
    """The exit code of the child process, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, device],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=patience,
        check=False,
    )
    return done.returncode, done.stdout


def judge_gpu(found: dict[str, Any], wanted: str | None, driver: str | None) -> Finding:
    """What a child process has found, as a sentence.

    Args:
        found: that it printed.
        wanted: the device that a run asks for.
        driver: the file that shows that there is a driver.
    """
    gpus = [
        f"{name}, {readable(free)} of {readable(total)} free" for name, free, total in found.get("gpus", ())
    ]
    if gpus and "error" not in found:
        return passed("gpu", "; ".join(gpus))
    bad = note if wanted is None else fail
    if wanted is not None and "sum" in found:
        return passed("gpu", f"torch computes on {wanted}")
    hidden = [f"{name}={os.environ[name]}" for name in HIDES if os.environ.get(name) in ("", "-1", "none")]
    said = "".join(f" torch says: {text}." for text in [found.get("error"), *found["warnings"]][:2] if text)
    asked = f"torch should compute on {wanted}, as worker.device says." if wanted else "there is a GPU."
    if not found.get("built") and (wanted is None or wanted.startswith("cuda")):
        found_build = f"{asked} This torch was built for processors alone"
        return bad("gpu", found_build, "Install a build of torch for your GPU, or keep worker.device=cpu.")
    if hidden:
        return bad("gpu", f"{asked} {' and '.join(hidden)} hides it", "Unset the variable.")
    if driver is None:
        return bad(
            "gpu",
            f"{asked} There is no driver here.{said}",
            "Install the driver; a container gets it by `--gpus all`, or by a device reservation.",
        )
    return bad(
        "gpu",
        f"{asked} The driver is there ({driver}), and torch, built for {found.get('built')}, cannot use it."
        f"{said}",
        "Renew the driver, or install an older build of torch: `nvidia-smi` shows the newest CUDA that the "
        "driver takes.",
    )
