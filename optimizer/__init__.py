"""The domain: what a nudge program is, whom it may nudge, and how one choice is made.

Reading order: `program` (the declared journey), `actions` (the grid), `customer` (who is asking), `journey` (what
events do), `guardrails` (what is allowed), `policy` (who chooses), `events` (what is logged), `engine` (all of it,
thirty lines). Nothing here does I/O, reads a clock or draws a random number: time, identifiers and chance are
arguments.
"""
