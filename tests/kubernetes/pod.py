"""A pod as processes of this machine, with the file system of its template: `python pod.py POD.json`.

It needs root, and takes what a container runtime would take: namespaces of its own, a root that is a
collection of read-only mounts of this machine, the pod's volumes at their places, and no privileges. What
it does not do: images, which are this Python and its packages, and limits of resources.
"""

import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE, NO_SUID = 1, 32, 4096, 16384, 1 << 18, 2
ETC = ("ld.so.cache", "passwd", "group", "nsswitch.conf", "localtime", "ssl", "mime.types", "alternatives")
HOST = ("/usr", "/dev", *(f"/etc/{name}" for name in ETC if os.path.exists(f"/etc/{name}")))
"""What a pod sees of this machine, beside the Python that runs the tests and the checkout."""
LINKS = ("/bin", "/sbin", "/lib", "/lib64")
PATH = "/opt/varangian/bin:/usr/local/bin:/usr/bin:/bin"


def mount(source, target, kind="", flags=0, options=""):
    texts = [str(text).encode() for text in (source, target, kind)]
    if LIBC.mount(*texts, flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{source} cannot be mounted: {os.strerror(number)}", str(target))


def bind(source, root, target, *, read_only):
    """Show a file or folder of this machine in the pod."""
    place = root / str(target).lstrip("/")
    if pathlib.Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.touch()
    mount(source, place, flags=BIND | RECURSIVE)
    if read_only:
        mount("none", place, flags=BIND | REMOUNT | READ_ONLY | NO_SUID)


def build(root, pod):
    mount("none", "/", flags=PRIVATE | RECURSIVE)
    mount("pod", root, "tmpfs", options="mode=755,size=16m")
    for path in HOST:
        bind(path, root, path, read_only=path != "/dev")
    for link in LINKS:
        if pathlib.Path(link).is_symlink():
            (root / link[1:]).symlink_to(os.readlink(link))
    (root / "proc").mkdir()
    mount("proc", root / "proc", "proc")
    program = root / "opt/varangian/bin/varangian"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {pod["python"]} -m varangian "$@"\n')
    (program.parent / "python").write_text(f'#!/bin/sh\nexec {pod["python"]} "$@"\n')
    for path in program.parent.iterdir():
        path.chmod(0o755)
    for source, target, read_only in pod["mounts"]:
        bind(source, root, target, read_only=read_only)
    for path in pod["host"]:  # last, as they may lie below a folder of the pod, as /tmp
        bind(path, root, path, read_only=True)
    if pod["readOnlyRoot"]:
        mount("none", root, flags=REMOUNT | READ_ONLY)


def privileges(pod):
    """The command that takes them away."""
    security = pod["security"]
    user, group = security.get("runAsUser", 0), security.get("runAsGroup", 0)
    words = ["setpriv", f"--reuid={user}", f"--regid={group}"]
    words += [f"--groups={security['fsGroup']}"] if "fsGroup" in security else ["--clear-groups"]
    return [*words, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]


def main(path):
    pod = json.loads(pathlib.Path(path).read_bytes())
    root = pathlib.Path(pod["root"])
    subprocess.run(["hostname", pod["hostname"]], check=True)
    build(root, pod)
    child = os.fork()
    if child == 0:
        os.chroot(root)
        os.chdir(pod["workingDir"])
        environment = {"PATH": PATH, **pod["environment"]}
        os.execvpe("setpriv", [*privileges(pod), *pod["command"]], environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    while True:
        ended, status = os.wait()
        if ended == child:  # others are orphans
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(sys.argv[1])
