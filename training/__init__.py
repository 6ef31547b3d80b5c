"""Learning from the log, and judging: what would have happened under another policy?

Reading order: `events` and `dataset` (the log as rounds), `train` (candidates), `reward_model` (what each action would
have been worth), `ope` (a row of terms for each estimator), `intervals` and `sequence` (how sure, once and at every
look), `diagnostics` (can this log answer?), `reading` (one pass over the log), `evaluate` (all targets side by side),
`promotion` (may it replace the champion?), `report` (the page a marketer reads), `registry` (MLflow).
"""
