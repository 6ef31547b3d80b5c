"""`nudge ...`: the command line, and the place where everything is put together.

Heavy imports stay inside commands: `nudge --help` needs none of them.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from optimizer.program import Program

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
program_argument = click.argument("program", metavar="PROGRAM")


class _Commands(click.Group):
    """Commands whose mistakes in what they were given, and stores that fail, end with the message and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            said = str(error)
            if isinstance(error, OSError) and error.filename:  # [Errno 2] tells nobody what to type
                said = f"{error.filename}: {error.strerror}; name another place"
            elif isinstance(error, OSError) and not isinstance(error, ConnectionError):
                raise
            click.echo(f"nudge: {said}", err=True)
            sys.exit(2)
        except Exception as error:
            store = sys.modules.get("serving.store")  # heavy: there where a command has used it
            if store is None or not isinstance(error, store.StoreError):
                raise
            click.echo(f"nudge: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="nudge-optimizer")
def main() -> None:
    """Choose the next best nudge for each customer, learn from what happens, and say honestly what it is worth.

    PROGRAM is the name of a shipped program, of one in NUDGE_HOME/programs or of an imported log, or a TOML file.
    """
    for threads in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(threads, "1")  # many small products: threads only get in each other's way


# ------------------------------------------------------------------------------------------------------- the service


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="API processes.")
@click.option("--simulated", is_flag=True, help="Mark a new store as simulated: requests may then name their own time.")
@click.option("--follow/--no-follow", default=True, help="Publish the champion when its alias moves in MLflow.")
def serve(host: str, port: int, workers: int, simulated: bool, follow: bool) -> None:
    """Answer decisions over HTTP, on the embedded store or the one at REDIS_URL."""
    from serving import processes

    processes.serve(host=host, port=port, workers=workers, simulated=simulated, follow=follow)


@main.command()
@click.argument("programs", nargs=-1, metavar="[PROGRAM]...")
@click.option("--once", is_flag=True, help="Publish what is champion now, and stop.")
def follow(programs: tuple[str, ...], once: bool) -> None:
    """Publish each program's champion to the service whenever its alias moves in MLflow."""
    from serving import loop

    loop.follow(programs, once=once)


@main.command()
@click.option("--watch", is_flag=True, help="Go on archiving until interrupted.")
@as_json
def archive(watch: bool, as_json: bool) -> None:
    """Move the event log from the store to Parquet, exactly once."""
    from serving import loop, output

    moved = loop.archive(watch=watch)
    output.show(moved, as_json=as_json)
    if moved.waiting:
        left = "are left to another archiver, which holds the log; if it has ended, run this again in a minute"
        click.echo(f"nudge: {moved.waiting} events {left}", err=True)


@main.command()
@click.argument("customers", nargs=-1, required=True, metavar="CUSTOMER_ID...")
@as_json
def erase(customers: tuple[str, ...], as_json: bool) -> None:
    """Forget customers everywhere: in the store and its file, and in the archive, which is rewritten."""
    from serving import loop, output

    output.show(loop.erase(customers), as_json=as_json)


@main.command()
@click.argument("target", metavar="DEST", type=click.Path(path_type=Path))
@as_json
def backup(target: Path, as_json: bool) -> None:
    """Write store, archive, keys, programs and registry, as of one moment, into a new folder. The service goes on."""
    import asyncio
    import time

    from serving import backup as keeping
    from serving import embedded, output, settings

    given = settings.load()
    with embedded.address(given) as url:
        work = keeping.back_up(given, target, url=url, registry=Path("mlruns"), now=time.time())
        output.show(asyncio.run(work), as_json=as_json)


@main.command()
@click.argument("source", metavar="SRC", type=click.Path(exists=True, file_okay=False, path_type=Path))
@as_json
def restore(source: Path, as_json: bool) -> None:
    """Put a backup into an empty NUDGE_HOME, once every file is found to be as it was written. Replaces nothing."""
    from serving import backup as keeping
    from serving import output, settings

    output.show(keeping.restore(source, settings.load(), registry=Path("mlruns")), as_json=as_json)


@main.group()
def keys() -> None:
    """Make, list, rotate and revoke API keys."""


@keys.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(["decide", "report", "admin", "simulate"]))
@click.option("--program", "programs", multiple=True, help="Limit the key to a program; may be repeated.")
def keys_create(name: str, scopes: tuple[str, ...], programs: tuple[str, ...]) -> None:
    """Make a key and print it once; only its hash is kept."""
    from serving import auth, settings

    click.echo(auth.create(settings.load().keys_file, name, scopes=scopes or ("decide", "report"), programs=programs))


@keys.command("list")
@as_json
def keys_list(as_json: bool) -> None:
    """List the keys: names, scopes and programs, never the keys."""
    from serving import auth, output, settings

    output.show(auth.listed(settings.load().keys_file), as_json=as_json)


@keys.command("rotate")
@click.argument("name")
@click.option(
    "--overlap", default="0m", show_default=True, help="How long the old key goes on, such as 30m, 12h or 2d."
)
def keys_rotate(name: str, overlap: str) -> None:
    """Replace a key by a new one and print it once; the old one goes on for the overlap."""
    from optimizer.program import Duration
    from serving import auth, settings

    click.echo(auth.rotate(settings.load().keys_file, name, overlap=Duration.parse(overlap)))


@keys.command("revoke")
@click.argument("name")
def keys_revoke(name: str) -> None:
    """Make a key useless at once."""
    from serving import auth, settings

    auth.revoke(settings.load().keys_file, name)
    click.echo(f"revoked {name}")


# ---------------------------------------------------------------------------------------------------------- the loop


@main.command("import")
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--map", "mapping", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A TOML file that says what the log's columns mean.")  # fmt: skip
@as_json
def import_(log: Path, mapping: Path, as_json: bool) -> None:
    """Turn a CSV or Parquet LOG of another system into the archive."""
    from serving import output, settings
    from training import importing

    with output.progress() as told:
        imported = importing.read(log, mapping, archive=settings.load().archive, progress=told)
    output.show(imported, as_json=as_json)


@main.command()
@program_argument
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    help="Fit only this kind of policy: thompson, squarecb, boosted, vowpal, or, only where asked for, greedy, "
    "hierarchical, recovering, logistic. May be repeated.",
)
@as_json
def train(program: str, kinds: tuple[str, ...], as_json: bool) -> None:
    """Fit candidates on the earlier part of the archived log and register them in MLflow."""
    from serving import loop, output

    with output.progress() as told:
        trained = loop.train(found(program), kinds=kinds, progress=told)
    output.show(trained, as_json=as_json)


@main.command()
@program_argument
@click.option("--whole", is_flag=True, help="Value what learned nothing on the whole log; leave candidates out.")
@click.option("--always", multiple=True, metavar="NUDGE", help="Value incentive/tone/timing, always made; repeatable.")
@click.option("--accept-estimated", is_flag=True, help="Let the gate promote on propensities that were estimated.")
@click.option("--until", type=float, default=None, help="As of this time, seconds since the epoch: to have it again.")
@click.option("--candidate", "candidates", multiple=True, metavar="VERSION", help="Judge this version; repeatable.")
@click.option("--champion", default=None, metavar="VERSION", help="Compare with this version, or with none.")
@as_json
def evaluate(program: str, as_json: bool, until: float | None, champion: str | None, **asked: Any) -> None:
    """Judge the newest candidates on the later part of the log; the page for marketers goes to MLflow."""
    from serving import loop, output

    again = loop.Again(until, asked.pop("candidates"), champion)
    with output.progress() as told:
        evaluated = loop.evaluate(found(program), again=again, progress=told, **asked)
    output.show(evaluated, as_json=as_json, long=("estimates",))


@main.command()
@program_argument
@click.option("--rollback", is_flag=True, help="Make the previous champion the champion again.")
@click.option("--require-approval", is_flag=True, envvar="NUDGE_REQUIRE_APPROVAL",
              help="Wait for the tag approved_by, which a person sets on the version in MLflow's UI.")  # fmt: skip
@as_json
def promote(program: str, rollback: bool, require_approval: bool, as_json: bool) -> None:
    """Move the champion's alias if the newest evaluation shows a better challenger, and say why or why not."""
    from serving import loop, output

    promoted = loop.promote(found(program), rollback=rollback, require_approval=require_approval)
    output.show(promoted, as_json=as_json)


@main.command()
@program_argument
@as_json
def audit(program: str, as_json: bool) -> None:
    """Check whether the archived log can be trusted to answer questions, and was written as it says."""
    from serving import loop, output

    checks = loop.audit(found(program))
    if as_json:
        output.show(checks, as_json=True)
    else:
        output.show_checks(checks)


@main.command()
@program_argument
@click.option("--output", "target", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the page.")
@click.option("--since", default=None, metavar="DATE", help="From this day on, such as 2026-11-01 (UTC).")
@click.option("--until", default=None, metavar="DATE", help="Up to this day, itself left out.")
@click.option("--arm", default="", help="Only this arm: champion, challenger, evaluation or holdout.")
@click.option("--policy", default="", metavar="NAME[@VERSION]", help="Only decisions of this policy.")
@click.option("--days", type=click.FloatRange(0.01), default=None, help="How long to follow customers; else up to 14.")
@click.option("--protect", multiple=True, metavar="ATTRIBUTE", help="Must not decide who is nudged; repeatable.")
@click.option("--evaluation", is_flag=True, help="The newest evaluation's page of policies instead.")
@as_json
def report(program: str, evaluation: bool, target: Path | None, as_json: bool, **asked: Any) -> None:
    """Measure the program: funnel, satisfaction, rewards, lift, fairness, wear-out; a page, and a run in MLflow.

    With --evaluation, write the page of the newest `nudge evaluate` instead, which compares policies.
    """
    from serving import loop, output

    if evaluation:
        click.echo(loop.evaluation_report(found(program), target=target))
        return
    reported = loop.report(found(program), loop.asked(**asked), target=target, command=" ".join(_typed()))
    output.show(reported if as_json else loop.in_short(reported), as_json=as_json)


def _typed() -> list[str]:
    """Return the command as it was typed, to have its result again."""
    return ["nudge", *sys.argv[1:]]


@main.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--demo", is_flag=True, help="Show what the demo logged.")
def ui(port: int, demo: bool) -> None:
    """Open MLflow on the right store."""
    from serving import processes

    processes.ui(port=port, root=Path("mlruns") / "demo" if demo else Path("mlruns"))


# ------------------------------------------------------------------------------------------------- webhooks and the CRM


@main.group("webhooks")
def webhooks_group() -> None:
    """Look after webhooks: what waits, what is dead, and sending it again."""


_target = click.option("--target", default="", metavar="NAME", help="Only this target.")


@webhooks_group.command("list")
@_target
@as_json
def webhooks_list(target: str, as_json: bool) -> None:
    """List messages that have not arrived: dead ones, and those that wait to be sent again."""
    from serving import letters, output

    output.show(letters.listed(target), as_json=as_json)


@webhooks_group.command("replay")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_target
@as_json
def webhooks_replay(ids: tuple[str, ...], target: str, as_json: bool) -> None:
    """Send dead messages again: those named, or all."""
    from serving import letters, output

    output.show(letters.replayed(ids, target), as_json=as_json)


@webhooks_group.command("drop")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that are dead.")
@_target
@as_json
def webhooks_drop(ids: tuple[str, ...], everything: bool, target: str, as_json: bool) -> None:
    """Forget dead messages: those named, or --all."""
    from serving import letters, output

    if bool(ids) == everything:
        raise ValueError("name the messages to forget, as `nudge webhooks list` shows them, or say --all")
    output.show(letters.dropped(ids, target), as_json=as_json)


@webhooks_group.command("secret")
def webhooks_secret() -> None:
    """Make a secret that signs webhooks, and print it once: for settings here, and for the receiver."""
    import base64
    import secrets

    click.echo(f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}")


@main.group("crm")
def crm_group() -> None:
    """Bring customers to a CRM and back."""


@crm_group.command("export")
@program_argument
@click.option("--to", "target", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="A file that ends with .csv or .parquet.")  # fmt: skip
@as_json
def crm_export(program: str, target: Path, as_json: bool) -> None:
    """Write every customer of a program: consent, attributes, stage, progress, rewards, last nudge and next one."""
    from serving import letters, output

    with output.progress() as told:
        exported = letters.exported(found(program), target, progress=told)
    output.show(exported, as_json=as_json)


@crm_group.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="What a column means; repeatable.")
@click.option("--resubscribe", is_flag=True, help="Let a yes in the file undo a no that a customer said.")
@click.option("--rejects", type=click.Path(dir_okay=False, path_type=Path), help="Where rows with faults are written.")
@as_json
def crm_import(file: Path, columns: tuple[str, ...], resubscribe: bool, rejects: Path | None, as_json: bool) -> None:
    """Take attributes, consent, time zones and unsubscribes from a CSV or Parquet FILE; exit code 2 for bad rows."""
    from serving import letters, output

    with output.progress() as told:
        imported = letters.imported(file, columns, resubscribe=resubscribe, rejects=rejects, progress=told)
    output.show(imported, as_json=as_json)
    if imported.rejected:
        sys.exit(2)


# ------------------------------------------------------------------------------------------------------- the program


@main.group("program")
def program_group() -> None:
    """Check and show programs."""


@program_group.command("new")
@click.argument("name")
@click.option("--output", "target", type=click.Path(dir_okay=False, path_type=Path), help="Where to write it.")
def program_new(name: str, target: Path | None) -> None:
    """Write a commented program to start from, as NAME.toml."""
    from optimizer import schema

    path = target or Path(f"{name}.toml")
    if path.exists():
        raise ValueError(f"{path} exists already: name another file with --output")
    path.write_text(schema.new(name), encoding="utf-8")
    click.echo(f"wrote {path}; change it, then: nudge program check {path}")


@program_group.command("schema")
def program_schema() -> None:
    """Print the JSON schema of programs, for editors."""
    import json

    from optimizer import schema

    click.echo(json.dumps(schema.schema(), indent=2))


@program_group.command("check")
@program_argument
@as_json
def program_check(program: str, as_json: bool) -> None:
    """Say everything that is wrong with a program: file, key and mend. Exit code 2 if there is a fault.

    Also how each touch point fares by relevance, value and call to action, and how its messages read: length, and
    Flesch's reading ease from 0 (very hard) to 100 (very easy).
    """
    from optimizer import audit as auditing
    from serving import output, programs, settings

    text, source = programs.text_of(program, folder=settings.load().programs)
    found = auditing.check(text, source=source)
    if as_json:
        output.show(output.audited(found), as_json=True)
    else:
        output.show_audit(found)
    if not found.fit:
        sys.exit(2)


@program_group.command("publish")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def program_publish(file: Path) -> None:
    """Put a program from FILE into service; a running one takes it up within a second or two."""
    from serving import programs, settings

    source, target = programs.publish(file, folder=settings.load().programs)
    click.echo(f"published {source.program.name} {source.program.version} as {target}")


@program_group.command("show")
@program_argument
@click.option("--map", "target", type=click.Path(dir_okay=False, path_type=Path), help="Draw the journey in this file.")
@click.option("--log", is_flag=True, help="Draw what the archived log shows, not what the program expects.")
@as_json
def program_show(program: str, target: Path | None, log: bool, as_json: bool) -> None:
    """Show what a program declares; or draw its journey, worked back from the goal."""
    from serving import output

    parsed = found(program)
    if target is None:
        output.show(output.described(parsed), as_json=as_json)
        return
    from serving import journey_map, settings

    statistics = journey_map.lived(settings.load().archive, parsed, most=5_000) if log else None
    target.write_text(journey_map.journey_map(parsed, statistics), encoding="utf-8")
    click.echo(f"drew {target}")


# ----------------------------------------------------------------------------------------------------- the simulation


@main.command()
@click.argument("worlds", nargs=-1, metavar="[WORLD]...")
@click.option("--program", default="fitness-coaching", show_default=True, metavar="PROGRAM", help="What is simulated.")
@click.option(
    "--policy", "policies", multiple=True, metavar="NAME", help="A policy, or a saved one's folder; repeatable."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the worlds; repeatable."
)
@click.option("--customers", default=1_000, show_default=True, type=click.IntRange(1, 10_000_000), help="How many.")
@click.option("--days", default=28, show_default=True, type=click.IntRange(1, 1_000), help="After two weeks at random.")
@click.option("--replications", default=3, show_default=True, type=click.IntRange(1, 1_000), help="For intervals.")
@click.option("--seed", default=1, show_default=True, help="Of the first replication; the same gives the same.")
@click.option("--trials", is_flag=True, help="Also run published trials in each world, and say how near it comes.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the page with charts here.")
@click.option("--mlflow", is_flag=True, help="Log figures, page and data to MLflow.")
@click.option("--fit", "archive", type=click.Path(file_okay=False, path_type=Path), metavar="ARCHIVE",
              help="Estimate a world from this archive of PROGRAM, and say how well it reproduces it.")  # fmt: skip
@click.option("--premortem", metavar="PROGRAM", help="Put a program into every kind of trouble: what breaks first?")
@as_json
def simulate(worlds: tuple[str, ...], **asked: Any) -> None:
    """Run policies against simulated customers whose true responses are known.

    Every policy meets the same customers and the same chance, after the same two weeks at random; each replication has
    other customers. Reward, conversion, retention, momentum, messages, opt-outs, cost, regret and fairness are
    reported with intervals over replications.

    \b
    WORLD   demo (the default), calibrated, null, harmful, additive, pairwise, threeway, fatigue, drift, shelf,
            delayed, tight-budget, few-customers, heterogeneous; or a file that --fit --json wrote (fitted.json)
    NAME    hold, fixed (the best single nudge for all), rules, uniform, thompson, squarecb, greedy, boosted, vowpal,
            clicks (greedy for clicks), patient (stage values and a price on burden), best (the simulator's own)

    \b
    nudge simulate calibrated pairwise --policy hold --policy fixed --policy thompson --days 90 --output page.html
    nudge simulate --premortem fitness-coaching --customers 500
    nudge simulate fatigue --set leaving=0.004 --policy hold --policy patient
    nudge simulate --fit var/archive --program fitness-coaching
    """  # noqa: D301  (click takes a backspace for "leave these lines as they are")
    from serving import loop, output

    as_json = asked.pop("as_json")
    command = " ".join(["nudge", *sys.argv[1:]])
    with output.progress() as told:
        told_of = loop.simulate(worlds, find=found, command=command, progress=told, **asked)
    output.show(told_of.data if as_json else told_of.table, as_json=as_json)
    if told_of.wrote and not as_json:
        click.echo(told_of.wrote)


@main.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the story as data.")
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), help="Keep the demo's data in this folder.")
@click.option("--customers", default=None, type=click.IntRange(100, 100_000), help="How many simulated customers.")
def demo(json_file: Path | None, home: Path | None, customers: int | None) -> None:
    """Tell the whole story in about three minutes: serve, learn, judge, promote, serve better."""
    from serving import demo as story

    story.run(json_file=json_file, home=home, customers=customers)


def found(name: str) -> "Program":
    """Return a program by file, by name in NUDGE_HOME/programs, by shipped name, or as an imported log declared it."""
    from serving import programs, settings

    given = settings.load()
    imported = sorted(given.archive.glob(f"program={name}/versions/*.toml"), key=lambda f: f.stat().st_mtime)
    if imported and name not in programs.known(given.programs):
        return programs.parse(imported[-1]).program
    return programs.find(name, folder=given.programs)


if __name__ == "__main__":
    main()
