"""Exec wrapper: become the program, after tying this process's life to its supervisor's.

`python -I -S child.py SUPERVISOR_PID NICENESS USER CAPABLE PROGRAM ARGUMENT...`

A wrapper and not `preexec_fn`, because code between fork and exec is unsafe in a process with
threads. It asks the kernel to kill this process when the thread that started it ends
(PR_SET_PDEATHSIG survives exec), so that nothing is left when a supervisor is killed by SIGKILL.

USER is `-` or a user to become, for programs that refuse to be root (PostgreSQL). Where that user
cannot reach the program or its data (a checkout below /root), CAPABLE `1` keeps the one
capability to pass such directories, CAP_DAC_OVERRIDE, which is also what root has in a container;
the machine's accounts and permissions stay as they are.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
LINUX_CAPABILITY_VERSION_3 = 0x20080522
EXIT_CANNOT_RUN = 127


def main() -> None:
    supervisor_pid, niceness, user, capable, *command = sys.argv[1:]
    os.nice(int(niceness))
    libc = ctypes.CDLL(None, use_errno=True)
    if user != "-":
        become(libc, user, keep_access=capable == "1")
    # After the change of user: the kernel forgets the request at a change of credentials.
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != int(supervisor_pid):
        sys.exit("the supervisor ended before its child had started")
    try:
        os.execvp(command[0], command)  # noqa: S606  # without a shell is what is wanted
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CANNOT_RUN)


def become(libc: ctypes.CDLL, user: str, *, keep_access: bool) -> None:
    """Give up root for `user`; with `keep_access` keep only CAP_DAC_OVERRIDE, also over exec."""
    entry = pwd.getpwnam(user)
    if keep_access:
        check(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "PR_SET_KEEPCAPS")
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    if keep_access:
        bit = 1 << CAP_DAC_OVERRIDE
        header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
        # Two words each of effective, permitted, inheritable.
        data = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
        check(libc.capset(header, data), "capset")
        raised = libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)
        check(raised, "PR_CAP_AMBIENT_RAISE")


def check(result: int, what: str) -> None:
    if result != 0:
        sys.exit(f"{what} failed: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
