"""Run the benchmarks, each in a process of its own, and print what they measured.

`python -m benchmarks` runs all, `python -m benchmarks NAME ...` some, `--show` none: it prints what is written.
"""

import argparse
import ast
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import results


def main() -> int:
    scripts = discover(Path(__file__).parent)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(scripts) or 'none yet'}")
    parser.add_argument("--show", action="store_true", help="run nothing, print the results on disk")
    asked = parser.parse_args()
    unknown = sorted(set(asked.names) - set(scripts))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(scripts) or 'none yet'}")
    failed = [] if asked.show else [name for name in asked.names or scripts if not run(name)]

    # Piped into a file the table keeps its columns; on a terminal it takes the width there is.
    console = Console(width=None if sys.stdout.isatty() else 160)
    written = results.read()
    console.print(results.table(written) if written else "No results are written yet.")
    if failed:
        console.print(f"Ended with an error, so their rows are those of an earlier run: {', '.join(failed)}")
    return 1 if failed else 0


def discover(folder: Path) -> list[str]:
    """The scripts that define `main`, found without importing what they measure."""
    return [path.stem for path in sorted(folder.glob("*.py")) if path.stem != "__main__" and _has_main(path)]


def run(name: str) -> bool:
    print(f"── {name}", flush=True)
    # Its own process: no benchmark warms another's caches or leaves it threads.
    ended = subprocess.run([sys.executable, "-c", f"from benchmarks.{name} import main; main()"], check=False)
    return ended.returncode == 0


def _has_main(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


if __name__ == "__main__":
    sys.exit(main())
