"""What a program is locked into: a file system, a network and process numbers of its own, limits, a filter of calls.

The server enters the jail once, each job gets a scratch folder and process numbers, the program the rest. What the
machine refuses is left out and reported: see `PROTECTIONS`.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuneline.rewards.sandbox import kernel

PROTECTIONS = {
    "network": "an own network without any interface",
    "files": "an own root of the standard library, read-only, and a scratch folder in memory; no /proc, no home",
    "processes": "own process numbers: all of a job die with it, and it sees no others",
    "user": "an own user number, or no capability in a user namespace",
    "calls": "a filter that refuses sockets, new processes, signals to others, ptrace, mounts; and, where there is no "
    "own root, every change to a file",
    "limits": "memory, CPU time, file size, open files, threads",
}
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_FIRST_USER = 1_900_000_000  # far above any account
_NUM_USERS = 100_000


@dataclass(frozen=True)
class Limits:
    """What a program may use. Sizes are in MiB, times in seconds."""

    wall_time: float = 10.0
    cpu_time: int = 8
    memory: int = 512
    files: int = 8
    open_files: int = 64
    threads: int = 16
    output: int = 1


def enter(folder: str) -> dict[str, bool]:
    """Put this process, the server, into the jail, as far as the machine allows.

    Args:
        folder: an empty one, only a mount point where there is an own file system.

    Returns:
        for each of `PROTECTIONS` whether it is on. Those of the program itself are tried in a child.
    """
    is_root = os.geteuid() == 0
    if not is_root or not _allowed(kernel.CLONE_NEWNS):
        _tried(_own_user_namespace)
    on = {"network": _tried(lambda: kernel.unshare(kernel.CLONE_NEWNET))}
    _tried(lambda: kernel.unshare(kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS))
    on["files"] = _tried(lambda: _own_root(folder))
    on["processes"] = _allowed(kernel.CLONE_NEWPID)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # a program of the same user may not look into its keepers
    on["user"] = _succeeds(lambda: _own_user(0))
    on["calls"] = _succeeds(kernel.refuse_system_calls)
    on["limits"] = _succeeds(lambda: _limit(Limits()))
    return on


def scratch(limits: Limits, number: int, on: dict[str, bool], folder: str) -> str:
    """The folder of one job: in memory, of a fixed size, where mounts are allowed."""
    if on["files"]:
        options = f"size={limits.files}m,nr_inodes=1000,mode=0777"
        kernel.mount("none", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        return "/tmp"
    path = os.path.join(folder, f"job-{number}")
    os.mkdir(path, 0o777)
    os.chmod(path, 0o777)
    return path


def confine(limits: Limits, number: int, on: dict[str, bool]) -> None:
    """Give this process, a program or its tests, a user of its own, the limits and the filter. It cannot undo them."""
    if on["limits"]:
        _limit(limits)
    if on["user"]:
        _own_user(number)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if on["calls"]:
        kernel.refuse_system_calls(read_only=not on["files"])


def _limit(limits: Limits) -> None:
    mebibyte = 2**20
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory * mebibyte),
        (resource.RLIMIT_CPU, limits.cpu_time),
        (resource.RLIMIT_FSIZE, limits.files * mebibyte),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.threads),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _own_user(number: int) -> None:
    if os.geteuid() == 0:
        user = _FIRST_USER + number % _NUM_USERS
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    else:
        kernel.drop_capabilities()
        # Without a namespace it is the user of the whole machine that this process belongs to.
        if not os.path.exists("/.jail") and "0 4294967295" in " ".join(Path("/proc/self/uid_map").read_text().split()):
            raise OSError("the program runs as the user who started it")


def _own_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user or 1000} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group or 1000} {group} 1")


def _own_root(folder: str) -> None:
    """A root that holds the standard library, the system's libraries and three devices, all read-only."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("none", folder, "tmpfs", kernel.MS_NOSUID, "size=1m,mode=0755")
    standard_library = os.path.dirname(os.path.realpath(os.__file__))
    for path in (*_LIBRARIES, *_DEVICES, standard_library):
        _show(path, folder)
    for packages in Path(folder + standard_library).glob("*-packages"):
        kernel.mount("none", str(packages), "tmpfs", kernel.MS_RDONLY)
    os.mkdir(folder + "/tmp", 0o777)
    Path(folder, ".jail").touch()
    kernel.mount("none", folder, None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID)
    kernel.change_root(folder)


def _show(path: str, folder: str) -> None:
    """Make a path of the machine visible under a new root, read-only."""
    target = folder + path
    if not os.path.exists(path) or os.path.exists(target):
        return
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target, 0o755)
    else:
        Path(target).touch()
    kernel.mount(path, target, None, kernel.MS_BIND | kernel.MS_REC)
    # In a user namespace flags that the mount has may not be taken away.
    kept = os.statvfs(target).f_flag & (
        kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC | kernel.MS_NOATIME | kernel.MS_NODIRATIME
    )
    if os.statvfs(target).f_flag & os.ST_RELATIME:
        kept |= kernel.MS_RELATIME
    flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kept
    kernel.mount("none", target, None, flags)


def _tried(step: Callable[[], object]) -> bool:
    try:
        step()
    except OSError:
        return False
    return True


def _allowed(flags: int) -> bool:
    return _succeeds(lambda: kernel.unshare(flags))


def _succeeds(step: Callable[[], object]) -> bool:
    """Whether a step that cannot be undone works, tried in a child."""
    child = os.fork()
    if child == 0:
        os._exit(0 if _tried(step) else 1)
    return os.waitpid(child, 0)[1] == 0
