"""Customers who do not exist, with a truth that is known: the judge of policies and of evaluation.

Reading order: `worlds` (settings), `population` (who they are), `effects` (what each level does to whom), `journeys`
(what the service would know of each, as columns), `response` (what they do in a day), `purse` (what is left to spend),
`rollout` (the closed loop in process), `log` and `metrics` (what training and the business see of it), `truth` (what a
policy is really worth), `drive` (the same loop over HTTP), `comparison` (policies side by side).
"""
