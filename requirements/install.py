"""Install a lock file and this checkout into the environment that runs this, showing progress.

`.venv/bin/python requirements/install.py stack`. Standard library only: it runs first.
"""

import re
import subprocess
import sys
from collections import deque
from pathlib import Path

HERE = Path(__file__).parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
STEP = re.compile(r"^(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9._-]+)")
KEPT_LINES_MAX = 30


def pip(what: str, total: int, *arguments: str) -> None:
    """Run pip; show which package of how many it is at; leave with its last words if it fails."""
    live = sys.stdout.isatty()
    last: deque[str] = deque(maxlen=KEPT_LINES_MAX)
    process = subprocess.Popen(
        [*PIP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    count = 0
    for line in process.stdout:
        last.append(line)
        if (step := STEP.match(line)) and total:
            count = min(count + 1, total)
            if live:
                print(f"\r\033[K    {count:3d}/{total} {step[1]}", end="", flush=True)
            elif count % 20 == 0 or count == total:
                print(f"    {count:3d}/{total} {step[1]}", flush=True)
        elif live and line.startswith("Installing collected"):
            print("\r\033[K    unpacking", end="", flush=True)
    if live:
        print("\r\033[K", end="", flush=True)
    if process.wait() != 0:
        sys.stdout.writelines(last)
        print(
            f"\n{what} cannot be installed (pip's last words are above). Most often the network or "
            "a proxy\n(set HTTPS_PROXY, or PIP_INDEX_URL for a mirror), or a full disk; "
            "then: the same make command again."
        )
        raise SystemExit(1)


def main() -> None:
    """Install what the arguments name: run, stack or dev."""
    for name in sys.argv[1:]:
        lock = HERE / f"{name}.lock"
        total = len(re.findall(r"^[A-Za-z0-9._-]+==", lock.read_text(), re.MULTILINE))
        # The lock has all that is needed. Asked for dependencies too, pip refuses what is wanted
        # with an extra (`grpcio[protobuf]`), for the lock names it without.
        pip(lock.name, total, "install", "--no-deps", "--require-hashes", "-r", str(lock))
    pip("this checkout", 0, "install", "--no-deps", "--no-build-isolation", "-e", str(HERE.parent))


if __name__ == "__main__":
    main()
