"""Customers who do not exist, with a truth that is known: the judge of policies and of evaluation.

Reading order: `worlds` (settings), `population` (who they are), `effects` (what each level does to whom), `journeys`
(what the service would know of each, as columns), `response` (what they do in a day), `rollout` (the closed loop in
process), `truth` (what a policy is really worth), `drive` (the same loop over HTTP).
"""
