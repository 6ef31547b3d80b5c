"""Settings: read once from the environment, and errors that quote key, value and what was expected."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from serving import settings
from serving.settings import Settings


def test_without_any_variable_everything_has_a_default() -> None:
    assert settings.load({}) == Settings()
    assert settings.load({"REDIS_URL": "", "NUDGE_BATCH": ""}) == Settings()


def test_everything_hangs_on_the_home_folder() -> None:
    given = settings.load({"NUDGE_HOME": "/srv/nudge"})
    assert given.keys_file == Path("/srv/nudge/keys.json")
    assert given.secret_file == Path("/srv/nudge/secret")
    assert given.programs == Path("/srv/nudge/programs")
    assert given.policies == Path("/srv/nudge/policies")
    assert given.archive == Path("/srv/nudge/archive")
    assert settings.load({"NUDGE_HOME": "/srv", "NUDGE_ARCHIVE": "/big"}).archive == Path("/big")


def test_each_variable_sets_its_field() -> None:
    given = settings.load(
        {
            "REDIS_URL": "rediss://:pw@store:6380/0",
            "NUDGE_SECRET": "s" * 32,
            "NUDGE_DECIDE_SECONDS": "0.25",
            "NUDGE_STORE_SECONDS": "1.5",
            "NUDGE_BATCH": "32",
            "NUDGE_QUEUE": "9999",
            "NUDGE_BODY_BYTES": "4096",
            "NUDGE_RATE": "7.5",
            "NUDGE_FOLLOW_SECONDS": "3",
            "NUDGE_LOG": "DEBUG",
        }
    )
    assert given == Settings(
        redis_url="rediss://:pw@store:6380/0",
        secret="s" * 32,
        decide_seconds=0.25,
        store_seconds=1.5,
        batch=32,
        queue=9999,
        body_bytes=4096,
        rate=7.5,
        follow_seconds=3.0,
        log_level="debug",
    )
    with pytest.raises(FrozenInstanceError):
        given.batch = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("NUDGE_BATCH", "65", "NUDGE_BATCH='65': expected a whole number from 1 to 64"),
        ("NUDGE_BATCH", "1.5", "expected a whole number"),
        ("NUDGE_DECIDE_SECONDS", "soon", "NUDGE_DECIDE_SECONDS='soon': expected a number from 0.01 to 60"),
        ("NUDGE_DECIDE_SECONDS", "nan", "expected a number"),
        ("NUDGE_RATE", "0", "try NUDGE_RATE=20000"),
        ("NUDGE_LOG", "loud", "expected one of debug, info, warning, error"),
        ("NUDGE_SECRET", "short", "has 5 characters: expected 32 or more"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_what_was_expected(key: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings.load({key: value})


@pytest.mark.parametrize(("url", "start"), [("http://:hush@[::1", "http"), ("hush", ""), ("redis:hush", "")])
def test_a_wrong_address_is_refused_without_its_password(url: str, start: str) -> None:
    with pytest.raises(ValueError, match=f"starts with '{start}': expected redis://") as refused:
        settings.load({"REDIS_URL": url})
    assert "hush" not in str(refused.value)


def test_every_variable_that_is_read_is_named_and_no_other() -> None:
    sources = [p.read_text(encoding="utf-8") for p in Path(settings.__file__).parent.glob("*.py")]
    without_the_list = re.sub(r"^NAMES = .*?^\)$", "", "\n".join(sources), flags=re.MULTILINE | re.DOTALL)
    read = re.findall(r"\"(NUDGE_[A-Z]+(?:_[A-Z]+)*)\"", without_the_list)
    assert {*read, "NUDGE_KEY"} == {*settings.NAMES}, "clients read the key"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NUDGE_HOEM", "did you mean NUDGE_HOME?"),
        ("NUDGE_REDIS_URL", "did you mean REDIS_URL?"),
        ("NUDGE_XYZZY_PLUGH", "there are NUDGE_HOME, "),
    ],
)
def test_a_variable_that_nothing_reads_is_told(name: str, says: str) -> None:
    (said,) = settings.unread(["PATH", "REDIS_URL", name, *settings.NAMES])
    assert said.startswith(f"{name} is not read by anything: {says}")


PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")]
SPANS = [(row[0].strip("`"), row[2], *row[3].split(", ")) for row in ROWS if row[3].count(", ") == 1]


def test_every_variable_is_on_the_page_of_settings() -> None:
    assert {*settings.NAMES} <= {row[0].strip("`") for row in ROWS}
    assert len(SPANS) == 11


@pytest.mark.parametrize(("name", "default", "low", "high"), SPANS)
def test_the_page_of_settings_tells_defaults_and_limits_as_they_are(
    name: str, default: str, low: str, high: str
) -> None:
    field = name.removeprefix("NUDGE_").lower()
    said, least, most = (float(text.replace(",", "")) for text in (default, low, high))
    kind = type(getattr(Settings(), field))
    assert getattr(Settings(), field) == said
    for value in (least, most):
        assert getattr(settings.load({name: str(kind(value))}), field) == value
    near = 1.0 if kind is int else 1e-5
    for value in (least - near, most + near):
        with pytest.raises(ValueError, match=name):
            settings.load({name: str(kind(value))})
