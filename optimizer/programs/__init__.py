"""Programs that ship."""

from importlib.resources import files

SHIPPED = ("fitness-coaching", "small-wins", "loyalty-loop")


def read(name: str) -> str:
    """Return the TOML of a shipped program; ValueError if there is none of that name."""
    if name not in SHIPPED:
        raise ValueError(f"no shipped program {name!r}: expected one of {', '.join(SHIPPED)}")
    return files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
