"""The registry: a real MLflow on a store of its own, from a trained policy to a served champion and back."""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import policies
from tests.training.worlds import made_up
from training import relocation
from training.evaluate import evaluate
from training.evaluation import Evaluation
from training.promotion import Verdict, judge
from training.registry import NotPromotedError, Registered, Registry, digest
from training.targets import baselines, deployed
from training.train import Candidate, split, train

WORLD = made_up(n=6_000, seed=41, lift=0.8)
PROGRAM = WORLD.dataset.program
HALVES = split(WORLD.dataset)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.open(tmp_path_factory.mktemp("mlruns"), environment={})


@pytest.fixture(scope="module")
def candidate() -> Candidate:
    return train(HALVES.earlier, kinds=["thompson"])[0]


@pytest.fixture(scope="module")
def registered(registry: Registry, candidate: Candidate) -> list[Registered]:
    """Log the same policy twice: two versions."""
    return [
        registry.log_training(
            HALVES.earlier, name=f"t{i}", policy=candidate.policy, kind=candidate.kind, params=candidate.params
        )
        for i in (1, 2)
    ]


@pytest.fixture(scope="module")
def evaluation(registered: list[Registered]) -> Evaluation:
    first = registered[0]
    policy = policies.load(first.folder, PROGRAM.space)
    return evaluate(HALVES.later, [*baselines(PROGRAM), deployed("t1", policy, PROGRAM, version=first.version)])


@pytest.fixture
def clean(registry: Registry) -> Iterator[Registry]:
    """Give the registry without a champion, before and after."""
    yield registry
    while registry.champion("small") and registry.rollback("small"):
        pass


def test_a_version_says_what_it_is(registered: list[Registered]) -> None:
    first, second = registered
    assert (first.version, second.version) == ("1", "2")
    assert (first.name, first.kind, first.program_version) == ("t1", "thompson", PROGRAM.version)


def test_the_saved_folder_is_plain_data_and_decides_as_the_trained_policy(
    registered: list[Registered], candidate: Candidate
) -> None:
    folder = registered[0].folder
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".npz"}
    rounds = WORLD.dataset.rounds.take(slice(50))
    given = (rounds.contexts, rounds.allowed, rounds.prices(PROGRAM.space))
    again = policies.load(folder, PROGRAM.space)
    assert (again.probabilities(*given) == candidate.policy.probabilities(*given)).all()


def test_mlflow_serves_the_registered_model(registry: Registry, registered: list[Registered]) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(str(registered[0].folder.parents[1]))
    rounds = WORLD.dataset.rounds.take(slice(1))
    context = dict(zip(PROGRAM.features, rounds.contexts[0].tolist(), strict=True))
    allowed = {n: 1.0 for n, ok in zip(PROGRAM.space.names, rounds.allowed[0], strict=True) if ok}
    (answer,) = model.predict([{"context": context, "allowed": allowed}])
    policy = policies.load(registered[0].folder, PROGRAM.space)
    expected = policy.probabilities(rounds.contexts, rounds.allowed, np.zeros(PROGRAM.space.k))[0]
    assert [answer[n] for n in PROGRAM.space.names] == expected.tolist()
    with pytest.raises(Exception, match="unknown feature 'shoe-size'"):
        model.predict([{"context": {"shoe-size": 44.0}}])


def test_nothing_is_pickled_and_requirements_are_explicit(registered: list[Registered]) -> None:
    model = registered[0].folder.parents[1]
    assert not [p for p in model.rglob("*") if p.suffix in (".pkl", ".pickle", ".joblib", ".cloudpickle")]
    requirements = (model / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in requirements)


def test_an_evaluation_is_logged_with_metrics_page_and_digest_but_no_rows(
    clean: Registry, evaluation: Evaluation
) -> None:
    verdict = judge(evaluation)
    run_id = clean.log_evaluation(
        evaluation, verdict, dataset=HALVES.later, files={"report.html": "<p>hello</p>"}, params={"share": 0.65}
    )
    run = clean._client().get_run(run_id)
    value = evaluation.score("t1").value
    assert run.info.status == "FINISHED"
    assert run.data.metrics["t1/value"] == value.value
    assert run.data.metrics["t1/lift_low"] == evaluation.score("t1").lift.low
    assert run.data.params["share"] == "0.65"
    assert run.data.tags["verdict"] == verdict.choice
    assert run.inputs.dataset_inputs[0].dataset.digest == digest(HALVES.later)
    files = {f.path for f in clean._client().list_artifacts(run_id)}
    assert files == {"report.html", "evaluation.json", "verdict.json", "tables"}
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert Evaluation.from_json((folder / "evaluation.json").read_bytes()) == evaluation
    table = json.loads((folder / "tables" / "values.json").read_text())
    assert ["t1", "dr"] in [row[:2] for row in table["data"]]
    challenger = clean.challenger("small")
    assert challenger is not None
    assert challenger.version == "1"


def test_the_alias_moves_on_a_verdict_and_back_on_rollback(clean: Registry, evaluation: Evaluation) -> None:
    assert clean.champion("small") is None
    verdict = judge(evaluation)
    assert verdict.promotes
    assert clean.promote("small", "1", verdict).version == "1"
    later = replace(verdict, champion_version="1", challenger_version="2")
    clean.promote("small", "2", later)
    champion = clean.champion("small")
    assert champion is not None
    assert champion.version == "2"
    back = clean.rollback("small")
    assert back is not None
    assert back.version == "1"
    assert clean.rollback("small") is None
    assert clean.champion("small") is None
    with pytest.raises(NotPromotedError, match="no champion to roll back from"):
        clean.rollback("small")


@pytest.mark.parametrize(
    ("change", "version", "message"),
    [
        ({"choice": "keep"}, "1", "the verdict is 'keep' for version '1'"),
        ({}, "2", "the verdict is 'promote' for version '1'"),
        ({"program": "other"}, "1", "of 'other'"),
        ({"champion_version": "7"}, "1", "reached against champion '7', but the champion is 'none'"),
    ],
)
def test_the_alias_does_not_move_without_a_verdict_for_it(
    clean: Registry, evaluation: Evaluation, change: dict[str, str], version: str, message: str
) -> None:
    verdict: Verdict = replace(judge(evaluation), **change)
    with pytest.raises(NotPromotedError, match=message):
        clean.promote("small", version, verdict)
    assert clean.champion("small") is None


def test_a_failing_run_is_marked_as_failed(clean: Registry, candidate: Candidate) -> None:
    class Broken:
        def save(self, folder: Path) -> None:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        clean.log_training(HALVES.earlier, name="broken", policy=Broken(), kind="x", params={})  # type: ignore[arg-type]
    client = clean._client()
    experiment = client.get_experiment_by_name("nudge/small").experiment_id
    failed = client.search_runs([experiment], "attributes.status = 'FAILED'")
    assert [r.info.run_name for r in failed] == ["train broken"]


def test_the_digest_follows_the_data() -> None:
    assert digest(HALVES.later) == digest(HALVES.later.take(slice(None)))
    assert digest(HALVES.later) != digest(HALVES.later.take(slice(1, None)))


def test_the_environment_names_the_store(tmp_path: Path) -> None:
    assert Registry.open(environment={"MLFLOW_TRACKING_URI": "http://mlflow.test"}) == Registry(
        "http://mlflow.test", ""
    )
    uri = f"sqlite:///{tmp_path}/x.db"
    assert Registry.open(environment={"MLFLOW_TRACKING_URI": uri}).artifacts == (tmp_path / "artifacts").as_uri()
    default = Registry.open(tmp_path / "mlruns", environment={})
    assert default == Registry(f"sqlite:///{tmp_path}/mlruns/mlflow.db", (tmp_path / "mlruns/artifacts").as_uri())


def test_a_store_that_was_moved_finds_its_artifacts(
    registry: Registry, registered: list[Registered], evaluation: Evaluation, tmp_path: Path
) -> None:
    """MLflow keeps whole paths: a copy must not read, nor write, where it came from."""
    files = {"report.html": "<p>hello</p>"}
    registry.log_evaluation(evaluation, judge(evaluation), dataset=HALVES.later, files=files, params={})
    shutil.copytree(Path(registry.artifacts.removeprefix("file://")).parent, tmp_path / "moved")
    moved = Registry.open(tmp_path / "moved", environment={})
    first = moved.get("small", registered[0].version)
    rounds = WORLD.dataset.rounds.take(slice(10))
    given = (rounds.contexts, rounds.allowed, rounds.prices(PROGRAM.space))
    assert first.folder.is_relative_to(tmp_path)
    assert policies.load(first.folder, PROGRAM.space).probabilities(*given).shape == (10, PROGRAM.space.k)
    found = moved.last_evaluation("small")
    assert found is not None
    assert found.evaluation == evaluation
    run = moved.log_evaluation(evaluation, judge(evaluation), dataset=HALVES.later, files=files, params={})
    for one in (found.run, run):
        place = Path(moved._client().get_run(one).info.artifact_uri.removeprefix("file://"))
        assert place.is_relative_to(tmp_path)
        assert (place / "report.html").is_file()
    assert registry.get("small", registered[0].version).folder == registered[0].folder


def test_artifacts_that_were_put_elsewhere_on_purpose_stay(tmp_path: Path) -> None:
    places = ["file:///elsewhere/small", "s3://bucket/small"]
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store, store:
        store.execute("CREATE TABLE experiments (name, artifact_location)")
        store.executemany("INSERT INTO experiments VALUES ('nudge/small', ?)", [(place,) for place in places])
    (tmp_path / "artifacts" / "other").mkdir(parents=True)
    assert relocation.follow(tmp_path / "mlflow.db", tmp_path / "artifacts") == 0
    (tmp_path / "artifacts" / "small").mkdir()
    assert relocation.follow(tmp_path / "mlflow.db", tmp_path / "artifacts") == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        found = [place for (place,) in store.execute("SELECT artifact_location FROM experiments")]
    assert found == [(tmp_path / "artifacts" / "small").as_uri(), places[1]]


def test_no_global_store_is_touched(clean: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    policy = train(HALVES.earlier, kinds=["thompson"])[0]
    clean.log_training(HALVES.earlier, name="t3", policy=policy.policy, kind="thompson", params={})
    assert list(tmp_path.iterdir()) == []
