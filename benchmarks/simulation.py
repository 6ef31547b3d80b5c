"""How fast do simulated customers live? Customer-days of the full dynamics on one core, and what a million need.

Every day of every customer goes through the real guardrails, policy, floor and draw of a program with 300 nudges, and
through the whole of the population's dynamics. One thread: seconds are of the processor.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from benchmarks.results import Row, write
from optimizer.policy import Policy
from optimizer.program import Program
from optimizer.programs import read
from policies.fixed import Uniform
from policies.thompson import Thompson
from simulations.population import Population, populate
from simulations.rollout import rollout, sole
from simulations.worlds import WORLDS

START = 1_767_571_200.0
"""Monday 5 January 2026, midnight UTC."""

Given = TypeVar("Given")

MILLION = 1_000_000
CUSTOMERS, DAYS = 20_000, 10
"""Customer-days that are timed; they are taken for a fifth of a million."""


def population(customers: int) -> Population:
    """Return customers of the program that ships, in the world `demo`."""
    program = Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")
    return populate(program, WORLDS["demo"], customers=customers, seed=1, start=START)


def seconds(kind: str) -> float:
    """Return the processor's seconds for a million customer-days under a policy that has learned a little."""
    people, others = population(CUSTOMERS), population(1_000)
    policy: Policy = Uniform(people.program.space)
    if kind == "thompson":
        past = rollout(others, sole(policy), days=10)
        policy = Thompson(people.program.space)
        policy.learn(past.rounds)
    warm = rollout(people, sole(policy), days=1, logged=False)
    began = time.process_time()
    rollout(people, sole(policy), days=DAYS, since=warm, logged=False)
    return (time.process_time() - began) * MILLION / (CUSTOMERS * DAYS)


def gibibytes(customers: int) -> float:
    """Return the most memory that a day of so many customers takes, the interpreter included."""
    people = population(customers)
    rollout(people, sole(Uniform(people.program.space)), days=1, logged=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def rows() -> Iterator[Row]:
    """Yield each measurement, each in a process of its own."""
    yield _row("a million customer-days, at random", _alone(seconds, "uniform"), unit="s", most=20)
    yield _row("a million customer-days, Thompson sampling", _alone(seconds, "thompson"), unit="s", most=60)
    yield _row("memory of a million customers", _alone(gibibytes, MILLION), unit="GiB", most=4)


def _alone(measure: Callable[[Given], float], given: Given) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, given).result()


def _row(name: str, ours: float, *, unit: str, most: float) -> Row:
    print(f"{name}: {ours:.3g} {unit}", flush=True)
    return Row(
        name=name,
        ours=ours,
        peer=None,
        peer_name=None,
        unit=unit,
        ratio=None,
        target=f"at most {most:g}",
        met=ours <= most,
    )


def main() -> None:
    """Measure and write the rows."""
    write("simulation", rows())


if __name__ == "__main__":
    main()
