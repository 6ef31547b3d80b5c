"""Learning from the log, and judging: what would have happened under another policy?

Reading order: `dataset` (the log as rounds), `train` (candidates), `reward_model` (what each action would
    have been worth), `reading` (one pass over the log), `ope` (a row of terms for each estimator), `intervals` (how sure), `diagnostics` (can
    this log answer?), `evaluate` (all targets side by side), `promotion` (may it replace the champion?),
    `report` (the page a marketer reads), `registry` (MLflow).
"""
