# ruff: noqa: INP001  (not a module of ours: MLflow runs it as a file)
"""The policy as MLflow serves it: `mlflow models serve --env-manager local` runs this file beside the saved folder."""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from policies import load
from policies.saved import read

Named = dict[str, float]


class ServedPolicy(PythonModel):
    """Answers with the probability of each action, before the floor."""

    def load_context(self, context: Any) -> None:
        """Load the saved folder, once."""
        folder = Path(context.artifacts["policy"])
        self.space = read(folder).space
        self.policy = load(folder, self.space)

    def predict(  # type: ignore[override]  # MLflow calls it with these two, and reads its types
        self, context: Any, model_input: list[dict[str, Named]]
    ) -> list[Named]:
        """Map requests to probabilities by action name.

        A request has `context` (number by feature; 0 where omitted), and optionally `allowed` (1 by action name;
        every action where omitted; hold is always allowed) and `prices` (number by action name; 0 where omitted).
        """
        space = self.space
        contexts = np.array([_row(r.get("context", {}), space.features, "feature") for r in model_input])
        prices = np.array([_row(r.get("prices", {}), space.names, "action") for r in model_input])
        allowed = np.array(
            [_row(r.get("allowed") or dict.fromkeys(space.names, 1.0), space.names, "action") for r in model_input]
        ).astype(bool)
        allowed[:, 0] = True
        vectors = self.policy.probabilities(contexts, allowed, prices)
        return [dict(zip(space.names, v.tolist(), strict=True)) for v in vectors]


def _row(given: Named, names: tuple[str, ...], what: str) -> list[float]:
    if unknown := set(given) - set(names):
        raise ValueError(f"unknown {what} {min(unknown)!r}: expected one of {', '.join(names[:20])}")
    return [float(given.get(name, 0.0)) for name in names]


set_model(ServedPolicy())
