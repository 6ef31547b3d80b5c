"""Who else is there? Vowpal Wabbit, and peers that live in an environment of their own, each at defaults and on a grid.

The environment is made under `var/`, from `peers-requirements.txt`, the first time that it is needed. Peers that cannot
be installed are reported as absent, with the reason.
"""

import json
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from benchmarks.peers_worker import read, write
from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.policy import Rounds
from policies.vowpal import Vowpal

HERE = Path(__file__).parent
CACHE = HERE.parent / "var" / "benchmarks"


class Setting(NamedTuple):
    """A peer as it is run: its default is the first of its name."""

    peer: str
    label: str
    settings: dict[str, Any]


VW = "vowpalwabbit"
GRID = (
    Setting(VW, "--squarecb", {}),
    Setting(VW, "--squarecb --gamma_scale 1000", {}),
    Setting(VW, "--squarecb --gamma_scale 1000 -l 2", {}),
    Setting(VW, "--squarecb --gamma_scale 1000 -l 2", {"pairs": False}),
    Setting(VW, "--epsilon 0.05", {}),
    Setting(VW, "--epsilon 0 -l 2", {}),
    Setting("gittins", "bits 18", {"kind": "gittins"}),
    Setting("gittins", "bits 18, epsilon 0", {"kind": "gittins", "epsilon": 0.0}),
    Setting("mabwiser", "LinUCB", {"kind": "mabwiser", "policy": "LinUCB"}),
    Setting("mabwiser", "LinGreedy, epsilon 0", {"kind": "mabwiser", "policy": "LinGreedy", "epsilon": 0.0}),
    Setting("mabwiser", "LinTS, alpha 0.1", {"kind": "mabwiser", "policy": "LinTS", "alpha": 0.1}),
    Setting("bayesianbandits", "alpha 1, beta 1", {"kind": "bayesianbandits", "alpha": 1.0, "beta": 1.0}),
    Setting("bayesianbandits", "alpha 30, beta 4", {"kind": "bayesianbandits", "alpha": 30.0, "beta": 4.0}),
    Setting(
        "bayesianbandits",
        "empirical Bayes",
        {"kind": "bayesianbandits", "learner": "EmpiricalBayesNormalRegressor"},
    ),
    Setting(
        "bayesianbandits",
        "empirical Bayes, no pairs",
        {"kind": "bayesianbandits", "learner": "EmpiricalBayesNormalRegressor", "pairs": False},
    ),
)
"""What is tried of each peer. `mabwiser` has no features of actions; VW and `bayesianbandits` are given ours."""


def name(setting: Setting) -> str:
    """Return what a table calls it."""
    extra = ", no pairs" if setting.settings.get("pairs") is False and setting.peer == VW else ""
    return f"{setting.peer} {setting.label}{extra}"


class _Unpaired(Vowpal):
    """Vowpal Wabbit without pairs of factors."""

    def _workspace(self, folder: Path) -> Any:
        from vowpalwabbit import Workspace  # noqa: PLC0415

        if not self._model:
            return Workspace(f"--quiet --noconstant --cb_explore_adf -q xh -q xi -q xt -q xm {self.arguments}")
        return super()._workspace(folder)


def vowpal(space: ActionSpace, setting: Setting) -> Vowpal:
    """Return VW as it learns, serving the probabilities of its own `predict`, which a test holds it to."""
    kind = _Unpaired if setting.settings.get("pairs") is False else Vowpal
    return kind(space, arguments=setting.label)


class Apart:
    """A peer in an environment of its own, at the other end of a pipe."""

    def __init__(self, space: ActionSpace, setting: Setting, *, seed: int) -> None:
        python = environment()
        if python is None:
            raise RuntimeError(f"{setting.peer} is absent: {absence()}")
        limits = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        self.process = subprocess.Popen(
            [str(python), str(HERE / "peers_worker.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=limits
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.asked, self.answers = self.process.stdin, self.process.stdout
        self.asked.write(json.dumps({**setting.settings, "seed": seed}).encode() + b"\n")
        write(self.asked, space.levels)

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        answer: Floats = self._ask(b"choose\n", contexts, allowed)
        return answer

    def learn(self, rounds: Rounds) -> None:
        r = rounds
        self._ask(b"learn\n", r.contexts, r.allowed, r.probabilities, r.actions, r.rewards)

    def _ask(self, word: bytes, *arrays: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self.asked.write(word)
        for array in arrays:
            write(self.asked, array)
        return read(self.answers)

    def close(self) -> None:
        """End the process."""
        self.asked.close()
        self.answers.close()
        self.process.wait()


@cache
def _made() -> tuple[Path | None, str]:
    wanted = HERE / "peers-requirements.txt"
    folder = CACHE / f"peers-{sha256(wanted.read_bytes()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python, ""
    folder.parent.mkdir(parents=True, exist_ok=True)
    print("installing the peers of the benchmark, once", flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(wanted)],
    ):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            return None, (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
    (folder / "ready").touch()
    return python, ""


def environment() -> Path | None:
    """Return the interpreter of the peers' environment, made where it is not; None where that failed."""
    return _made()[0]


def absence() -> str:
    """Return why there is none; empty where there is."""
    return _made()[1]
