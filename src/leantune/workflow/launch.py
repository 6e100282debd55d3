"""Start Snakemake on this checkout, one run at a time: `python -m leantune.bench [SNAKEMAKE
ARGUMENTS]`.

A killed Snakemake leaves its lock behind. Whoever holds the lock on `runs/.lock` knows that no
other run is alive, so it may remove that lock and go on where the killed run stopped.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Replace this process with `snakemake --cores all ARGUMENTS`; returns only if another run is
    under way."""
    lock = Path("runs/.lock")
    lock.parent.mkdir(exist_ok=True)
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(
            "leantune: another run is under way in this folder; wait for it or stop it",
            file=sys.stderr,
        )
        return 2
    os.set_inheritable(
        held, True
    )  # Snakemake takes the lock over with this process, and its end frees it
    # The cells run `python`: it must be the one of this environment.
    os.environ["PATH"] = os.pathsep.join(
        [os.path.dirname(sys.executable), os.environ.get("PATH", "")]
    )
    snakemake = [sys.executable, "-m", "snakemake"]
    if any(Path(".snakemake/locks").glob("*")):
        subprocess.run([*snakemake, "--unlock", "--quiet", *arguments], check=False)
    os.execv(sys.executable, [*snakemake, "--cores", "all", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
