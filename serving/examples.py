"""What does an exchange look like? An example of every request and answer, by the name of its model."""

from collections.abc import Mapping
from typing import Any

_DECISION: Mapping[str, Any] = {
    "decision_id": "0-01KAFQ3V6Z8M2T4C9R5XW1YH7B",
    "customer_id": "c-42",
    "program": "fitness-coaching",
    "action": {"incentive": "achievement-badge", "tone": "celebratory", "timing": "evening"},
    "deliver_at": "2026-11-22T18:00:00+01:00",
    "expires_at": "2026-11-23T06:00:00+01:00",
    "message": {
        "subject": "21 days in a row",
        "body": "Nine more and the 30-day badge is yours.",
        "call_to_action": "Start today's workout",
    },
    "propensity": 0.31,
    "policy": {"name": "thompson", "version": "7"},
    "stage": "experience",
    "progress": {"milestone": "30-day streak", "done": 21, "of": 30, "reward": "a badge"},
    "hold_reason": None,
    "next_eligible_at": None,
    "degraded": False,
}
_HOLD: Mapping[str, Any] = {
    **_DECISION,
    "decision_id": "0-01KAFQ3V70QH2J6D8N4B5PZC3E",
    "customer_id": "c-43",
    **dict.fromkeys(("action", "deliver_at", "expires_at", "message")),
    "propensity": 1.0,
    "hold_reason": "quiet_hours",
    "next_eligible_at": "2026-11-23T08:00:00+01:00",
}
_WHY: Mapping[str, Any] = {
    "arm": "champion",
    "program_version": "3f1c9a7e52d0",
    "at": "2026-11-22T12:03:11+01:00",
    "time_zone": "Europe/Berlin",
    "chances": {"achievement-badge/celebratory/evening": 0.31, "hold": 0.22, "achievement-badge/encouraging/now": 0.11},
    "others": 41,
    "blocked": {"incentive=streak-discount": "budget", "timing=now": "quiet_hours"},
    "context": {"stage": "experience", "momentum": 0.71, "goal": "get-fit"},
    "scores": {
        "nudge": 0.042,
        "incentive=achievement-badge": 0.031,
        "tone=celebratory": 0.008,
        "timing=evening": 0.015,
    },
}
_OUTCOME: Mapping[str, Any] = {
    "outcome_id": "order-7",
    "program": "fitness-coaching",
    "customer_id": "c-42",
    "event": "workout_done",
    "at": "2026-11-22T18:40:00+01:00",
}
_ASK: Mapping[str, Any] = {"program": "fitness-coaching", "customer_id": "c-42", "decision_id": "mail-2026-11-22-42"}

REQUESTS: Mapping[str, Any] = {
    "DecideRequest": {**_ASK, "context": {"sessions_last_week": 3}, "without": {"tone": ["playful"]}},
    "DecideBatch": {"requests": [_ASK, {"program": "fitness-coaching", "customer_id": "c-43"}]},
    "OutcomeReports": [
        _OUTCOME,
        {**_OUTCOME, "outcome_id": "seen-7", "event": "shown", "decision_id": "mail-2026-11-22-42"},
    ],
    "CustomerChange": {"consent": True, "time_zone": "Europe/Berlin", "attributes": {"goal": "get-fit"}},
    "Pause": {"level": "incentive=streak-discount"},
    "HandOff": {"program": "fitness-coaching", "customer_id": "c-42"},
}
"""Bodies, by model."""

ANSWERS: Mapping[str, Any] = {
    "Decision": _DECISION,
    "Decisions": {"results": [_DECISION, _HOLD]},
    "Explanation": {**_DECISION, **_WHY},
    "HandedOff": {
        "decision_id": "mail-2026-11-22-42",
        "deliver": False,
        "reason": "consent",
        "deliver_at": "2026-11-22T18:00:00+01:00",
        "expires_at": "2026-11-23T06:00:00+01:00",
    },
    "Received": {
        "accepted": 1,
        "duplicates": 1,
        "errors": [
            {
                "index": 2,
                "code": "unknown_event",
                "detail": "program fitness-coaching has no event 'leap'; use one of workout_done, trial_started",
            }
        ],
    },
    "CustomerState": {
        "customer_id": "c-42",
        "program": "fitness-coaching",
        "stage": "experience",
        "consent": True,
        "time_zone": "Europe/Berlin",
        "attributes": {"goal": "get-fit"},
        "momentum": 0.71,
        "dosage": 0.25,
        "streak": 21,
        "longest_streak": 21,
        "progress": _DECISION["progress"],
        "milestones": [
            {
                "name": "thirty-days",
                "title": "30-day streak",
                "done": 21,
                "of": 30,
                "reward": "a badge",
                "reached": False,
            }
        ],
        "rewards": {"earned": [], "to_come": [{"milestone": "30-day streak", "reward": "a badge"}]},
        "next_eligible_at": None,
        "latest": None,
    },
    "Profile": {
        "customer_id": "c-42",
        "consent": True,
        "time_zone": "Europe/Berlin",
        "attributes": {"goal": "get-fit"},
    },
    "History": {"decisions": [_DECISION]},
    "Served": {
        "name": "fitness-coaching",
        "title": "Fitness coaching",
        "version": "3f1c9a7e52d0",
        "versions": ["3f1c9a7e52d0", "b80c1d66a9fe"],
        "stages": ["aware", "experience"],
        "events": ["workout_done", "trial_started"],
        "incentives": ["achievement-badge", "streak-discount"],
        "tones": ["celebratory", "encouraging"],
        "timings": ["now", "evening"],
        "policies": {"champion": {"name": "thompson", "version": "7"}},
        "paused": ["incentive=streak-discount"],
    },
    "Paused": {"program": "fitness-coaching", "paused": ["incentive=streak-discount"]},
    "Readiness": {
        "ready": True,
        "parts": {
            "store": {"ok": True, "warning": False, "detail": ""},
            "policy:fitness-coaching": {"ok": True, "warning": False, "detail": "champion: thompson 7"},
            "archive": {
                "ok": True,
                "warning": True,
                "detail": "81240 events are not archived yet, the oldest for 7300 s; run nudge archive --watch",
            },
        },
    },
    "Health": {"status": "ok"},
}
"""Bodies of successful answers, by model."""

NOT_READY: dict[str, Any] = {
    "ready": False,
    "parts": {
        "store": {"ok": False, "warning": False, "detail": "the store at 127.0.0.1:6379 did not answer within 2 s"}
    },
}
"""The other answer to whether every part works."""
