"""Start Snakemake on this checkout, one run at a time:
`python -m leantune.workflow.launch [SNAKEMAKE ARGUMENTS]`.

A killed Snakemake leaves its lock behind. Whoever holds the lock on `runs/.lock` knows that no
other run is alive, so it may remove that lock and go on where the killed run stopped.
"""

import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout


def main(arguments: list[str]) -> int:
    """Run `snakemake --cores all ARGUMENTS` in this process, which it ends: however it ends, the
    lock is free again. Returns only if another run is under way."""
    Path("runs").mkdir(exist_ok=True)
    # The cells run `python`: it must be the one of this environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        with FileLock("runs/.lock", blocking=False):
            if any(Path(".snakemake/locks").glob("*")):
                unlock = [sys.executable, "-m", "snakemake", "--unlock", "--quiet"]
                subprocess.run([*unlock, *arguments], check=False)
            from snakemake.cli import main as snakemake  # a refusal need not wait for it

            snakemake(["--cores", "all", *arguments])
    except Timeout:
        told = "leantune: another run is under way in this folder; wait for it or stop it"
        print(told, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
