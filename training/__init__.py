"""Learning from the log, and judging: what would have happened under another policy?

Reading order: `events` and `dataset` (the log as rounds), `train` (candidates), `reward_model` (what each action would
have been worth), `ope` (a row of terms for each estimator), `pseudo_inverse` and `balancing` (weights where effects are
factored), `intervals` and `sequence` (how sure, once and at every look), `diagnostics` (can this log answer?),
`reading` (one pass over the log), `evaluate` (all targets side by side), `guardrail_prices` (what a rule costs),
`promotion` and `fairness` (may it replace the champion?), `report` (the page a marketer reads), `registry` (MLflow).

Beside them: `importing` and `propensities` (logs of other systems), `audit` (diagnostics of a log alone), `delay`
(cohorts that are still open), `lift` (holdout against treated), `wear_out` and `survival` (what lasts), `effects`,
`contrasts` and `figures` (what scorecards and pages say), `scorecard`, `kpis` and `record` (journeys over time),
`erasure` and `compaction` (the archive).
"""
