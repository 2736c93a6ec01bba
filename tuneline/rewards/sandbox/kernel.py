"""The Linux calls that confine a process and that Python has no name for.

Each raises `OSError` where the kernel or a container refuses.
"""

from __future__ import annotations

import ctypes
import os
import platform

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MS_NOATIME, MS_NODIRATIME, MS_RELATIME = 1024, 2048, 1 << 21
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = [None if text is None else text.encode() for text in (source, target, kind)]
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), options and options.encode()), f"mount {target}")


def change_root(new_root: str) -> None:
    """Make a mount point the root and let go of the old one."""
    os.chdir(new_root)
    number = {"x86_64": 155, "aarch64": 41}.get(platform.machine())
    if number is None:
        raise OSError(f"pivot_root is not known on {platform.machine()}")
    _check(_libc.syscall(ctypes.c_long(number), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def prctl(option: int, value: int, pointer: object = None) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)), "prctl")


def drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


# What a program may not ask of the kernel. Numbers: arch/x86/entry/syscalls/syscall_64.tbl, asm-generic/unistd.h.
_REFUSED = {
    "x86_64": {
        "socket": 41, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "ptrace": 101,
        "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "tkill": 200, "rt_sigqueueinfo": 129,
        "rt_tgsigqueueinfo": 297, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272,
        "setns": 308, "bpf": 321, "perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250,
        "userfaultfd": 323, "memfd_create": 319, "open_by_handle_at": 304, "shmget": 29, "msgget": 68, "semget": 64,
        "mq_open": 240, "personality": 135, "setpriority": 141, "sched_setaffinity": 203,
        "sched_setscheduler": 144, "kexec_load": 246, "init_module": 175, "finit_module": 313, "reboot": 169,
    },
    "aarch64": {
        "socket": 198, "execve": 221, "execveat": 281, "ptrace": 117, "process_vm_readv": 270,
        "process_vm_writev": 271, "kcmp": 272, "tkill": 130, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "bpf": 280,
        "perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219, "userfaultfd": 282,
        "memfd_create": 279, "open_by_handle_at": 265, "shmget": 194, "msgget": 186, "semget": 190, "mq_open": 180,
        "personality": 92, "setpriority": 140, "sched_setaffinity": 122, "sched_setscheduler": 119,
        "kexec_load": 104, "init_module": 105, "finit_module": 273, "reboot": 142,
    },
}  # fmt: skip
# The same numbers everywhere: pidfd_send_signal, io_uring_*, open_tree to fspick, pidfd_open, pidfd_getfd,
# mount_setattr.
_REFUSED_EVERYWHERE = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 442)
_CLONE3 = 435
# Only about the process itself: clone (threads), kill, tgkill, prlimit64.
_LIMITED = {"x86_64": (56, 62, 234, 302), "aarch64": (220, 129, 131, 261)}
# What changes files by path: creat, rename*, mkdir*, rmdir, link*, unlink*, symlink*, mknod*, chmod*, chown*, truncate,
# utime*, *xattr; then where the flags of open and openat stand.
_CHANGES_FILES = {
    "x86_64": (85, 82, 264, 316, 83, 258, 84, 86, 265, 87, 263, 88, 266, 133, 259, 90, 268, 92, 94, 260, 76, 132, 235,
               261, 280, 188, 189, 197, 198),
    "aarch64": (38, 276, 34, 37, 35, 36, 33, 53, 54, 45, 88, 5, 6, 14, 15),
}  # fmt: skip
_OPENS = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
_OPENAT2 = 437
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction))]


def refuse_system_calls(read_only: bool = False) -> None:
    """No sockets, no new processes or programs, no signals to others, no mounts; threads stay allowed.

    With `read_only` no file can be opened for writing, made, moved or deleted either. A refused call fails with EPERM.
    It holds for this process and all it could ever start, and cannot be taken back.
    """
    machine = platform.machine()
    if machine not in _REFUSED:
        raise OSError(f"the system calls of {machine} are not known")
    clone, kill, tgkill, prlimit = _LIMITED[machine]
    code = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, 0x40000000),  # x32's names for the same calls
        (_RETURN, 0, 0, _ERROR | _EPERM),
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERROR | _ENOSYS),  # libc then takes clone, whose flags can be read here
        *_only_with(clone, _ANY_BIT, CLONE_THREAD),
        *_only_with(kill, _EQUAL, os.getpid()),
        *_only_with(tgkill, _EQUAL, os.getpid()),
        *_only_with(prlimit, _EQUAL, 0),
    ]
    refused = [*_REFUSED[machine].values(), *_REFUSED_EVERYWHERE]
    if read_only:
        code += [(_EQUAL, 0, 1, _OPENAT2), (_RETURN, 0, 0, _ERROR | _ENOSYS)]
        for number, flags_at in _OPENS[machine]:
            code += _never_with(number, flags_at, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        refused += _CHANGES_FILES[machine]
    for number in refused:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | _EPERM)]
    code.append((_RETURN, 0, 0, _ALLOW))
    instructions = (_Instruction * len(code))(*(_Instruction(*line) for line in code))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, 2, ctypes.byref(_Filter(len(code), instructions)))


def _only_with(number: int, comparison: int, value: int) -> list[tuple[int, int, int, int]]:
    """Allow a call where its first argument compares well, refuse it otherwise."""
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (comparison, 0, 1, value),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERROR | _EPERM),
    ]


def _never_with(number: int, argument: int, bits: int) -> list[tuple[int, int, int, int]]:
    """Refuse a call where an argument has one of these bits, allow it otherwise."""
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT + 8 * argument),
        (_ANY_BIT, 0, 1, bits),
        (_RETURN, 0, 0, _ERROR | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
