"""Where are runs, models and aliases kept? In MLflow; this is its only door.

The store is `MLFLOW_TRACKING_URI` where that is set, else `mlruns/mlflow.db` with artifacts beside it.
MLflow gets digests and aggregates, never rows. Nothing here touches MLflow's global state: every call names
its store.
"""

import hashlib
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from optimizer.policy import Policy
from training import relocation
from training.dataset import Dataset
from training.evaluation import Evaluation
from training.figures import Figure
from training.intervals import Estimate
from training.promotion import Verdict

CHAMPION, CHALLENGER = "champion", "challenger"

APPROVED_BY = "approved_by"
"""The tag of a version that a person sets, with their name, where a promotion needs approval."""

_ROOT = Path("mlruns")
_PREVIOUS = "previous_champion"


class Registered(NamedTuple):
    """A version of a program's registered model: a saved policy."""

    name: str
    version: str
    kind: str
    program_version: str
    folder: Path


class Evaluated(NamedTuple):
    """An evaluation as it was logged: its run, what it found, and the verdict."""

    run: str
    evaluation: Evaluation
    verdict: Verdict


class NotPromotedError(ValueError):
    """The alias was not moved, and why."""


@dataclass(frozen=True)
class Registry:
    """MLflow, as this project uses it.

    Args:
        uri: of the tracking store, which is the model registry too.
        artifacts: where new experiments keep artifacts; empty where the server decides.
    """

    uri: str
    artifacts: str

    @classmethod
    def open(cls, root: Path = _ROOT, *, environment: Mapping[str, str] | None = None) -> "Registry":
        """Return the registry at `MLFLOW_TRACKING_URI`, or else the default under `root`, which is created.

        A store in a file may have been moved since it was last opened: its artifacts are looked for beside it.
        """
        given = (os.environ if environment is None else environment).get("MLFLOW_TRACKING_URI", "")
        local = given.removeprefix("sqlite:///") if given.startswith("sqlite:///") else ""
        if given and not local:
            return cls(given, "")
        database = Path(local).resolve() if local else root.resolve() / "mlflow.db"
        if not given:
            database.parent.mkdir(parents=True, exist_ok=True)
        artifacts = database.parent / "artifacts"
        relocation.follow(database, artifacts)
        return cls(given or f"sqlite:///{database}", artifacts.as_uri())

    # What is written.

    def log_training(
        self, dataset: Dataset, *, name: str, policy: Policy, kind: str, params: Mapping[str, object]
    ) -> Registered:
        """Log a run for a trained policy and register it as a new version.

        Args:
            dataset: what it learned from; only its digest and its size are kept.
            name: what the candidate is called.
            policy: the trained policy.
            kind: its name in `policies.KINDS`.
            params: what it was trained with.
        """
        program = dataset.program
        tags = {"name": name, "kind": kind, "program_version": program.version}
        with self._run(program.name, name=f"train {name}", params={**tags, **params}) as run:
            self._describe(run, dataset, context="training")
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary) / "policy"
                folder.mkdir()
                policy.save(folder)
                model_id = self._log_model(run, folder=folder, name=name, program=program.name)
            registered = self._register(program.name, model_id=model_id, run=run, tags=tags)
        return self.get(program.name, registered)

    def log_evaluation(
        self,
        evaluation: Evaluation,
        verdict: Verdict,
        *,
        dataset: Dataset,
        files: Mapping[str, str | bytes],
        params: Mapping[str, object],
    ) -> str:
        """Log a run for an evaluation and return its id.

        Args:
            evaluation: its values become metrics, with `_low` and `_high`.
            verdict: becomes tags and the run's description.
            dataset: what was evaluated on; only its digest and its size are kept.
            files: artifacts by name: the page, the chart.
            params: what it was evaluated with.
        """
        settings = {"reference": evaluation.reference, "level": evaluation.level, **params}
        with self._run(evaluation.program, name="evaluate", params=settings) as run:
            self._describe(run, dataset, context="evaluation")
            client = self._client()
            client.log_batch(run, metrics=_metrics(evaluation))
            client.set_tag(run, "verdict", verdict.choice)
            client.set_tag(run, "challenger", verdict.challenger)
            client.set_tag(run, "propensities", evaluation.propensities)
            client.set_tag(run, "policy_versions", ", ".join(f"{s.name}@{s.version}" for s in evaluation.scores))
            client.set_tag(run, "mlflow.note.content", "\n".join(f"- {r.text}" for r in verdict.reasons))
            self._log_files(run, {**files, **_tables(evaluation, verdict)})
        if verdict.challenger_version:
            self.set_challenger(evaluation.program, verdict.challenger_version)
        return str(run)

    def log_report(
        self,
        program: str,
        *,
        figures: Mapping[str, Figure],
        files: Mapping[str, str | bytes],
        params: Mapping[str, object],
        note: str,
    ) -> str:
        """Log a run for a program's scorecard and return its id.

        Args:
            program: its name.
            figures: what is known of them becomes metrics, with `_low` and `_high`.
            files: artifacts by name: the page, the data, the tables.
            params: what was asked for.
            note: the run's description.
        """
        found: dict[str, float] = {}
        for name, figure in figures.items():
            ends = {"": figure.value, "_low": figure.low, "_high": figure.high}
            key = re.sub(r"[^\w./ -]", "_", name)
            found |= {f"{key}{end}": x for end, x in ends.items() if x is not None and math.isfinite(x)}
        metrics = [_entities().Metric(key, value, 0, 0) for key, value in found.items()]
        with self._run(program, name="report", params=params) as run:
            for start in range(0, len(metrics), 1_000):  # MLflow takes no more at a time
                self._client().log_batch(run, metrics=metrics[start : start + 1_000])
            self._client().set_tag(run, "mlflow.note.content", note)
            self._log_files(run, files)
        return str(run)

    def log_simulation(
        self,
        program: str,
        *,
        figures: Mapping[str, float],
        files: Mapping[str, str | bytes],
        params: Mapping[str, object],
    ) -> str:
        """Log a run for a simulation and return its id: figures become metrics, the page and its data artifacts."""
        with self._run(program, name="simulate", params=params) as run:
            metrics = [_entities().Metric(k, v, 0, 0) for k, v in figures.items() if math.isfinite(v)]
            for start in range(0, len(metrics), 1_000):  # as many as one call takes
                self._client().log_batch(run, metrics=metrics[start : start + 1_000])
            self._log_files(run, files)
        return str(run)

    def promote(self, program: str, version: str, verdict: Verdict) -> Registered:
        """Move the champion's alias to a version that a verdict promotes, and remember the one before.

        Raises:
            NotPromotedError: if the verdict does not promote this version, or was reached against another
                champion.
        """
        before = self.champion(program)
        standing = before.version if before else ""
        if not verdict.promotes or verdict.program != program or verdict.challenger_version != version:
            raise NotPromotedError(
                f"version {version} of {program!r} stays out: the verdict is {verdict.choice!r} for version "
                f"{verdict.challenger_version!r} of {verdict.program!r}; evaluate again: nudge evaluate"
            )
        if verdict.champion_version != standing:
            raise NotPromotedError(
                f"the verdict was reached against champion {verdict.champion_version or 'none'!r}, but the "
                f"champion is {standing or 'none'!r} by now; evaluate again: nudge evaluate"
            )
        return self.crown(program, version, reason=f"verdict: {verdict.choice} at {verdict.level:.4g}")

    def approved_by(self, program: str, version: str) -> str:
        """Return who approved a version: the tag that a person sets on it in MLflow's UI; empty if nobody did."""
        tags = self._client().get_model_version(_model(program), version).tags
        return str(tags.get(APPROVED_BY, "")).strip()

    def crown(self, program: str, version: str, *, reason: str) -> Registered:
        """Move the champion's alias to a version, on a person's word."""
        client, before = self._client(), self.champion(program)
        if before and before.version != version:
            client.set_model_version_tag(_model(program), version, _PREVIOUS, before.version)
        client.set_model_version_tag(_model(program), version, "promoted_because", reason)
        client.set_registered_model_alias(_model(program), CHAMPION, version)
        return self.get(program, version)

    def rollback(self, program: str) -> Registered | None:
        """Move the champion's alias back to the version before; to none where there was none."""
        now = self.champion(program)
        if now is None:
            raise NotPromotedError(f"{program!r} has no champion to roll back from: nudge promote")
        client = self._client()
        tags = client.get_model_version(_model(program), now.version).tags
        if _PREVIOUS not in tags:
            client.delete_registered_model_alias(_model(program), CHAMPION)
            return None
        client.set_registered_model_alias(_model(program), CHAMPION, tags[_PREVIOUS])
        return self.get(program, tags[_PREVIOUS])

    def set_challenger(self, program: str, version: str) -> None:
        """Move the challenger's alias to a version."""
        self._client().set_registered_model_alias(_model(program), CHALLENGER, version)

    # What is read.

    def champion(self, program: str) -> Registered | None:
        """Return the version that serves, or None."""
        return self._aliased(program, CHAMPION)

    def challenger(self, program: str) -> Registered | None:
        """Return the version that challenges, or None."""
        return self._aliased(program, CHALLENGER)

    def newest(self, program: str) -> list[Registered]:
        """Return the newest version of each candidate, by name: what the last training registered."""
        newest: dict[str, int] = {}
        for found in self._client().search_model_versions(f"name = '{_model(program)}'"):
            name = found.tags["name"]
            newest[name] = max(newest.get(name, 0), int(found.version))
        return [self.get(program, str(version)) for _, version in sorted(newest.items())]

    def last_evaluation(self, program: str) -> Evaluated | None:
        """Return what the newest finished evaluation found, or None."""
        client = self._client()
        experiment = client.get_experiment_by_name(f"nudge/{program}")
        wanted = "attributes.run_name = 'evaluate' and attributes.status = 'FINISHED'"
        order = ["attributes.start_time DESC"]
        runs = experiment and client.search_runs([experiment.experiment_id], wanted, max_results=1, order_by=order)
        if not runs:
            return None
        run = str(runs[0].info.run_id)
        with tempfile.TemporaryDirectory() as temporary:
            evaluation = Path(client.download_artifacts(run, "evaluation.json", temporary)).read_bytes()
            verdict = Path(client.download_artifacts(run, "verdict.json", temporary)).read_bytes()
        return Evaluated(run, Evaluation.from_json(evaluation), msgspec.json.decode(verdict, type=Verdict))

    def find(self, program: str, version: str) -> Registered | None:
        """Return a version, or None where there is none of that number."""
        try:
            return self.get(program, version)
        except _mlflow().exceptions.MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def get(self, program: str, version: str) -> Registered:
        """Return a version, with its saved folder on this machine."""
        found = self._client().get_model_version(_model(program), version)
        folder = _mlflow().artifacts.download_artifacts(
            artifact_uri=f"{found.source.rstrip('/')}/artifacts/policy", tracking_uri=self.uri
        )
        return Registered(
            name=found.tags["name"],
            version=str(found.version),
            kind=found.tags["kind"],
            program_version=found.tags["program_version"],
            folder=Path(folder),
        )

    def _aliased(self, program: str, alias: str) -> Registered | None:
        try:
            found = self._client().get_model_version_by_alias(_model(program), alias)
        except _mlflow().exceptions.MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return self.get(program, str(found.version))

    def _client(self) -> Any:
        return _mlflow().MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def _experiment(self, program: str) -> str:
        client, name = self._client(), f"nudge/{program}"
        if (found := client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        return str(client.create_experiment(name, artifact_location=self._location(program)))

    def _location(self, program: str) -> str | None:
        return f"{self.artifacts}/{program}" if self.artifacts else None

    @contextmanager
    def _run(self, program: str, *, name: str, params: Mapping[str, object]) -> Iterator[str]:
        """Open a run; it ends as failed where its body raises."""
        client = self._client()
        run = str(client.create_run(self._experiment(program), run_name=name).info.run_id)
        status = "FAILED"
        try:
            client.log_batch(run, params=[_entities().Param(k, str(v)) for k, v in params.items()])
            yield run
            status = "FINISHED"
        finally:
            client.set_terminated(run, status)

    def _log_files(self, run: str, files: Mapping[str, str | bytes]) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            for file, content in files.items():
                path = Path(temporary) / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode() if isinstance(content, str) else content)
            self._client().log_artifacts(run, temporary)

    def _describe(self, run: str, dataset: Dataset, *, context: str) -> None:
        entities = _entities()
        described = entities.Dataset(
            name=dataset.program.name,
            digest=digest(dataset),
            source_type="archive",
            source=f"archive/program={dataset.program.name}",
            profile=msgspec.json.encode({"rounds": len(dataset), "matured_share": dataset.matured_share}).decode(),
        )
        tag = entities.InputTag("mlflow.data.context", context)
        if dataset.estimated_propensities:
            self._client().set_tag(run, "propensities", "estimated")
        self._client().log_inputs(run, datasets=[entities.DatasetInput(described, [tag])])
        self._client().set_tag(run, "program_version", dataset.program.version)

    def _log_model(self, run: str, *, folder: Path, name: str, program: str) -> str:
        """Keep a saved folder as a logged model and return its id."""
        client = self._client()
        logged = client.create_logged_model(self._experiment(program), name=name, source_run_id=run)
        code = resources.files("training").joinpath("templates", "served_policy.py")
        with tempfile.TemporaryDirectory() as temporary, resources.as_file(code) as code:
            _mlflow().pyfunc.save_model(
                path=f"{temporary}/model",
                python_model=str(code),
                artifacts={"policy": str(folder)},
                pip_requirements=_requirements(),
            )
            client.log_model_artifacts(logged.model_id, f"{temporary}/model")
        client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)

    def _register(self, program: str, *, model_id: str, run: str, tags: Mapping[str, str]) -> str:
        client, name = self._client(), _model(program)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        made = client.create_model_version(
            name,
            source=client.get_logged_model(model_id).artifact_location,  # models:/ would ask the global store
            run_id=run,
            model_id=model_id,
            tags=dict(tags),
        )
        return str(made.version)


def digest(dataset: Dataset) -> str:
    """Return a fingerprint of the program and its rounds: what MLflow gets in place of rows."""
    state = hashlib.sha256(dataset.program.version.encode())
    for f in fields(dataset.rounds):
        column = np.ascontiguousarray(getattr(dataset.rounds, f.name))
        state.update(f"{f.name} {column.dtype} {column.shape}".encode())
        state.update(column.data)
    return state.hexdigest()[:16]


def _model(program: str) -> str:
    return f"nudge-{program}"


def _metrics(evaluation: Evaluation) -> list[Any]:
    """Every number with its interval, named so that runs compare side by side: `thompson/lift_low`."""
    found = {"matured_share": evaluation.matured_share, "rounds": float(evaluation.rounds)}
    for score in evaluation.scores:
        named: dict[str, Estimate | None] = {"value": score.value, "lift": score.lift, "over_hold": score.over_hold}
        named |= score.estimates
        named |= {f"event_{name}": estimate for name, estimate in score.events.items()}
        for name, estimate in named.items():
            if estimate is not None:
                key = f"{score.name}/{name}"
                found |= {key: estimate.value, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
        found |= {f"{score.name}/nudged": score.nudged, f"{score.name}/cost": score.cost}
    found |= {
        f"{c.target}/{c.name}".lstrip("/").replace(" ", "_"): c.value
        for c in evaluation.checks
        if math.isfinite(c.value)
    }
    return [_entities().Metric(key, value, 0, 0) for key, value in found.items()]


def _tables(evaluation: Evaluation, verdict: Verdict) -> dict[str, bytes]:
    """The results as JSON: whole, and as the tables that MLflow's UI shows."""
    columns = ["target", "estimator", "value", "low", "high", "error", "rounds", "customers"]
    rows = [
        [s.name, name, e.value, e.low, e.high, e.error, e.rounds, e.customers]
        for s in evaluation.scores
        for name, e in [*s.estimates.items(), ("lift", s.lift)]
    ]
    return {
        "evaluation.json": evaluation.to_json(),
        "verdict.json": msgspec.json.format(msgspec.json.encode(verdict), indent=1),
        "tables/values.json": msgspec.json.encode({"columns": columns, "data": rows}),
    }


def _requirements() -> list[str]:
    """What the saved policy needs where it is served; named here, so that MLflow need not guess by importing."""
    needed = ["mlflow", "msgspec", "numba", "numpy", "scipy"]
    try:
        ours = [f"nudge-optimizer=={version('nudge-optimizer')}"]
    except PackageNotFoundError:  # run from a checkout that was not installed
        ours = []
    return ours + [f"{name}=={version(name)}" for name in needed]


def _mlflow() -> ModuleType:
    """Import MLflow on first use (seconds, hundreds of megabytes), with telemetry off and without its chatter."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # noqa: PLC0415  (this is the door)

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def _entities() -> Any:
    return _mlflow().entities
