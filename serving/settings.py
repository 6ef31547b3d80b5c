"""What can be set from outside? One frozen record, read once from the environment."""

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving import targets
from serving.targets import Target

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder which workers share; `nudge serve --workers` sets it."""

NAMES = (
    *("NUDGE_HOME", "NUDGE_ARCHIVE", "NUDGE_SECRET", "NUDGE_LOG", "NUDGE_KEY", "NUDGE_REQUIRE_APPROVAL"),
    *("NUDGE_DECIDE_SECONDS", "NUDGE_STORE_SECONDS", "NUDGE_FOLLOW_SECONDS", "NUDGE_EXPIRE_DAYS"),
    *("NUDGE_BATCH", "NUDGE_QUEUE", "NUDGE_BODY_BYTES", "NUDGE_RATE"),
    *("NUDGE_WEBHOOK_URL", "NUDGE_WEBHOOK_SECRET", "NUDGE_WEBHOOK_EVENTS", "NUDGE_WEBHOOK_LOOPBACK"),
    *("NUDGE_WEBHOOK_SECONDS", "NUDGE_WEBHOOK_BACKOFF", "NUDGE_WEBHOOK_ATTEMPTS"),
)
"""Every variable of ours that anything reads; others' are REDIS_URL and those of MLflow and OpenTelemetry."""

_SCHEMES = ("redis", "rediss", "unix")


@dataclass(frozen=True)
class Settings:
    """How a service runs. Each field is set by the environment variable that `load` names for it.

    Args:
        home: folder of everything that a service keeps: keys, secret, policies, programs, archive.
        redis_url: the store; None where the command line is to start the embedded one.
        archive: folder of the Parquet log.
        secret: signs published policies; empty to keep one in the home folder.
        decide_seconds: after so long a decision that the store has not kept is answered as hold.
        store_seconds: after so long any other call of the store is given up.
        batch: most requests decided at once.
        queue: most requests that wait; more are answered 429.
        body_bytes: largest request body.
        rate: rows (decisions, outcomes) a second that one API key may send.
        follow_seconds: how often the published policies are looked at.
        expire_days: after so long without anything a customer leaves the store; 0 keeps all. The archive is untouched.
        log_level: least severity that is logged.
        shared: folder through which the workers of one service add up what they count; None for one process.
        traces: where OpenTelemetry spans are posted; empty to trace nothing.
        targets: who is told of what happens, by webhook.
        webhook_seconds: after so long a webhook that is not answered counts as not taken.
        webhook_backoff: seconds until a webhook is tried again the first time; then twice as long, and so on.
        webhook_attempts: after so many a webhook is dead, until somebody replays it.
    """

    home: Path = Path("var")
    redis_url: str | None = None
    archive: Path = Path("var/archive")
    secret: str = ""
    decide_seconds: float = 1.0
    store_seconds: float = 2.0
    batch: int = 64
    queue: int = 4096
    body_bytes: int = 1 << 20
    rate: float = 20_000.0
    follow_seconds: float = 1.0
    expire_days: float = 400.0
    log_level: str = "info"
    traces: str = ""
    shared: Path | None = None
    targets: tuple[Target, ...] = ()
    webhook_seconds: float = 10.0
    webhook_backoff: float = 5.0
    webhook_attempts: int = 14

    @property
    def keys_file(self) -> Path:
        """Where the hashes of API keys are."""
        return self.home / "keys.json"

    @property
    def secret_file(self) -> Path:
        """Where the secret that signs policies is, unless it is given."""
        return self.home / "secret"

    @property
    def programs(self) -> Path:
        """Where programs of one's own are, a TOML file each."""
        return self.home / "programs"

    @property
    def policies(self) -> Path:
        """Where the last good copy of each published policy is."""
        return self.home / "policies"


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from environment variables; ValueError quotes key, value and what was expected.

    Args:
        environment: the variables; those of this process where omitted. An empty value counts as not set.
    """
    given = {k: v for k, v in (os.environ if environment is None else environment).items() if v}
    home = Path(given.get("NUDGE_HOME", "var"))
    return Settings(
        home=home,
        redis_url=_url(given, "REDIS_URL"),
        archive=Path(given.get("NUDGE_ARCHIVE", home / "archive")),
        secret=_secret(given, "NUDGE_SECRET"),
        decide_seconds=_number(given, "NUDGE_DECIDE_SECONDS", 1.0, low=0.01, high=60.0),
        store_seconds=_number(given, "NUDGE_STORE_SECONDS", 2.0, low=0.01, high=60.0),
        batch=int(_number(given, "NUDGE_BATCH", 64, low=1, high=64, kind=int)),
        queue=int(_number(given, "NUDGE_QUEUE", 4096, low=1_000, high=1_000_000, kind=int)),
        body_bytes=int(_number(given, "NUDGE_BODY_BYTES", 1 << 20, low=1_024, high=1 << 28, kind=int)),
        rate=_number(given, "NUDGE_RATE", 20_000.0, low=0.001, high=1e9),
        follow_seconds=_number(given, "NUDGE_FOLLOW_SECONDS", 1.0, low=0.01, high=3_600.0),
        expire_days=_number(given, "NUDGE_EXPIRE_DAYS", 400.0, low=0.0, high=36_500.0),
        log_level=_one_of(given, "NUDGE_LOG", ("debug", "info", "warning", "error"), default="info"),
        traces=_traces(given),
        shared=Path(given[SHARED]) if SHARED in given else None,
        targets=targets.load(given, home / "webhooks.toml"),
        webhook_seconds=_number(given, "NUDGE_WEBHOOK_SECONDS", 10.0, low=0.01, high=60.0),
        webhook_backoff=_number(given, "NUDGE_WEBHOOK_BACKOFF", 5.0, low=0.01, high=3_600.0),
        webhook_attempts=int(_number(given, "NUDGE_WEBHOOK_ATTEMPTS", 14, low=1, high=100, kind=int)),
    )


def unread(names: Iterable[str]) -> list[str]:
    """Say which variables look like ours and are not: a misspelt one would be ignored without a word.

    >>> unread(['NUDGE_REDIS_URL', 'NUDGE_RATE', 'HOME'])
    ['NUDGE_REDIS_URL is not read by anything: did you mean REDIS_URL?']
    """
    said, known = [], {n.removeprefix("NUDGE_"): n for n in (*NAMES, "REDIS_URL")}
    for name in sorted({n for n in names if n.startswith("NUDGE_")} - {*NAMES}):
        close = difflib.get_close_matches(name.removeprefix("NUDGE_"), known, n=1)
        meant = f"did you mean {known[close[0]]}?" if close else f"there are {', '.join(NAMES)}"
        said.append(f"{name} is not read by anything: {meant}")
    return said


def _number(
    given: Mapping[str, str], key: str, default: float, *, low: float, high: float, kind: Callable[[str], float] = float
) -> float:
    text = given.get(key)
    if text is None:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        whole = "a whole number" if kind is int else "a number"
        raise ValueError(f"{key}={text!r}: expected {whole} from {low:g} to {high:g}; try {key}={default:g}")
    return value


def _one_of(given: Mapping[str, str], key: str, choices: tuple[str, ...], *, default: str) -> str:
    value = given.get(key, default).lower()
    if value not in choices:
        raise ValueError(f"{key}={value!r}: expected one of {', '.join(choices)}")
    return value


def _url(given: Mapping[str, str], key: str) -> str | None:
    url = given.get(key)
    if url is not None and not url.startswith(tuple(f"{scheme}://" for scheme in _SCHEMES)):
        # The value may hold a password, so no more than a scheme is quoted.
        scheme, slashes, _ = url.partition("://")
        raise ValueError(
            f"{key} starts with {scheme if slashes else ''!r}: expected redis://, rediss:// or unix://,"
            f" such as {key}=redis://127.0.0.1:6379/0"
        )
    return url


def _traces(given: Mapping[str, str]) -> str:
    """Return where spans go, by OpenTelemetry's own variables; empty where no exporter is configured."""
    whole, every = given.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ""), given.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    off = given.get("OTEL_SDK_DISABLED", "").lower() == "true" or given.get("OTEL_TRACES_EXPORTER") == "none"
    endpoint = "" if off else whole or (f"{every.rstrip('/')}/v1/traces" if every else "")
    protocol = given.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or given.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if endpoint and protocol not in (None, "http/protobuf"):
        raise ValueError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: spans are sent over http/protobuf only;"
            " set it to that, and the endpoint to the collector's HTTP port, such as http://127.0.0.1:4318"
        )
    return endpoint


def _secret(given: Mapping[str, str], key: str) -> str:
    secret = given.get(key, "")
    if secret and len(secret) < 32:
        raise ValueError(
            f"{key} has {len(secret)} characters: expected 32 or more; make one with `openssl rand -hex 32`"
        )
    return secret
