"""The page: one HTML file with all styles, scripts and data inside.

Its policy forbids every request and every script but its own, so that nothing in a name or a reason can
become one.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from varangian import __version__
from varangian.cli.views.terminal import printable
from varangian.experiments.ranks.read import Record
from varangian.experiments.report.rendering import (
    ASSETS,
    Cell,
    Section,
    Table,
    check_libraries,
    markup,
    render,
)
from varangian.experiments.report.sections import account, curves, heat_maps, timeline, worst_cases
from varangian.experiments.report.vega import javascript
from varangian.experiments.results.filters import EVERYTHING, Filter
from varangian.experiments.results.read import Results
from varangian.experiments.results.study import Study
from varangian.files import write_atomically

NOTE = 160
"""Characters of a sentence at the top that is shown as a whole."""
ERRORS = 20
"""Most steps without an update of which the page about ranks tells."""
SECONDS = 2
"""Between two questions of a page that is followed."""


def page(
    results: Results, *, notes: Sequence[str] = (), only: Filter = EVERYTHING, follow: bool = False
) -> str:
    """The page about these runs.

    Args:
        results: from `read_runs`.
        notes: sentences about the reading, shown at the top.
        only: the filter that the runs have passed, for the facts at the top.
        follow: whether runs that have not ended count as far as they are, and the page refreshes itself.

    Raises:
        ResultsError: no run counts, or one is damaged.
    """
    study = Study.of(results, unfinished=follow)
    sections = list(_sections(results, study))
    facts = [*([("only", " ".join(only.texts))] if only.texts else []), *_facts(results, study)]
    told = [_shortened(note) for note in (*notes, *study.notes)]
    return _assemble(_title(results, study), facts, told, _live(results), sections, follow=follow)


def write_page(
    results: Results, path: Path, *, notes: Sequence[str] = (), only: Filter = EVERYTHING
) -> None:
    """Write the page about these runs, the whole of it or nothing.

    Raises:
        ResultsError: no run counts, or one is damaged.
        MissingLibraryError: the extra `report` is not installed.
        OSError: the file cannot be written.
    """
    check_libraries()
    write_atomically(path, page(results, notes=notes, only=only).encode())


def write_ranks_page(record: Record, path: Path) -> None:
    """Write the page about the steps of ranks that were reduced without a server.

    Raises:
        MissingLibraryError: the extra `report` is not installed.
        OSError: the file cannot be written.
    """
    check_libraries()
    columns = (
        "rank",
        "host",
        "device",
        "dropped",
        "far",
        "repeated",
        "opposed",
        "accused",
        "weight 0",
        "mean weight",
        "mean cosine",
    )
    ranks = record.ranks
    rows: list[list[Cell]] = [
        [
            r.rank,
            r.host,
            r.device,
            r.dropped,
            r.far,
            r.repeated,
            r.opposed,
            r.accused,
            r.weightless if r.weights else None,
            r.weight,
            r.agreement,
        ]
        for r in ranks
    ]
    starts, strips = record.strips()
    html = render(
        "ranks.html",
        columns=columns,
        rows=rows,
        faulty={rank.rank for rank in ranks if rank.faulty or rank.accused},
        starts=starts,
        strips=strips,
        table=Table("ranks-data", columns, rows, columns[3:]),
        errors=[f"Step {step}: {why}" for step, why in record.errors[:ERRORS]],
    )
    facts = [("ranks", str(len(ranks))), ("steps", str(record.steps))]
    facts += [(name, str(record.about[name])) for name in ("aggregator", "f") if name in record.about]
    sections = [Section("ranks", "Ranks", html)]
    title = f"Ranks: {record.path.name}"
    page = _assemble(title, facts, record.sentences, "", sections, follow=False)
    write_atomically(path, page.encode())


def waiting_page(sentence: str) -> str:
    """A page that asks for itself again until there is something to show."""
    return _assemble("Nothing to show yet", [], [], sentence, [], follow=True)


def _assemble(
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    live: str,
    sections: Sequence[Section],
    *,
    follow: bool,
) -> str:
    css, library, script = _asset("page.css"), javascript(), _asset("page.js")
    return render(
        "page.html",
        title=title,
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M %z"),
        facts=facts,
        notes=notes,
        live=live,
        follow=SECONDS if follow else 0,
        sections=[
            {"id": s.id, "title": s.title, "html": markup(s.html), "version": s.version} for s in sections
        ],
        head_version=_digest([title, facts, notes, live]),
        nav_version=_digest([section.id for section in sections]),
        policy=_policy(css, (library, script), follow=follow),
        css=markup(css),
        library=markup(library),
        script=markup(script),
    )


def _sections(results: Results, study: Study) -> Iterator[Section]:
    yield from worst_cases.sections(study)
    yield from curves.sections(study)
    yield from heat_maps.sections(study)
    yield from timeline.sections(study)
    yield from account.sections(results, study)


def runs_to_come(results: Results) -> int:
    """The number of planned runs that have not begun."""
    begun = {run.folder.with_name(run.id).resolve() for run in results}
    planned = {
        (sweep.path.parent / point.id).resolve() for sweep in results.sweeps for point in sweep.points
    }
    return len(planned - begun)


def _shortened(note: str) -> str:
    """A sentence, or its first clause if it is long; the section about failed runs has all of it."""
    clause = note if len(note) <= NOTE else f"{note.partition('; ')[0]} ..."
    return printable(clause, 2 * NOTE)


def _title(results: Results, study: Study) -> str:
    if results.sweeps:
        return ", ".join(sweep.name for sweep in results.sweeps)
    if len(results) == 1:
        case = study.cases[0]
        attack = "nobody attacks" if case.clean else f"under {case.attack}"
        return f"{case.rule}, {attack}: {results.runs[0].id}"
    return f"{len(results)} runs"


def _facts(results: Results, study: Study) -> Iterator[tuple[str, str]]:
    states = Counter(account.STATES.get(run.state, run.state) for run in results)
    yield "runs", ", ".join(f"{count} {state}" for state, count in states.items())
    if len(study.rules) > 1:
        yield "rules", str(len(study.rules))
    if len(study.attacks) > 1:
        yield "attacks", str(sum(attack != "none" for attack in study.attacks))
    if "seed" in study.varying:
        yield "seeds", str(len(study.varying["seed"]))
    if len(results) == 1:
        result = results.runs[0].result or {}
        for name in ("rounds", "outcome", "digest"):
            if result.get(name) is not None:
                yield name, str(result[name])
        if refused := result.get("refused"):
            yield "refused", ", ".join(f"{code} {count}" for code, count in refused.items())
    versions = sorted({str(run.manifest.get("varangian")) for run in results} - {"None"})
    if versions:
        yield "made by varangian", ", ".join(versions)


def _live(results: Results) -> str:
    going = [run for run in results if run.running]
    planned = len(results) + runs_to_come(results)
    if not going:
        if planned > len(results):
            return f"{len(results)} of {planned} planned runs are over, and none goes on now."
        return "All runs are over. The page does not change any more."
    last = going[0].columns("time")[0]
    rounds = f"{int(last[-1])} rounds done" if len(last) else "no round done yet"
    if len(results) == 1:
        return f"The run goes on: {rounds} of {going[0].config.get('rounds')}."
    over = len(results) - len(going)
    return f"{over} of {planned} runs are over, and {len(going)} go on. {going[0].id}: {rounds}."


def _policy(css: str, scripts: Sequence[str], *, follow: bool) -> str:
    allowed = " ".join(map(_hash, scripts))
    asks = "'self'" if follow else "'none'"
    # Vega hides and measures elements by their style attribute, which a hash cannot allow.
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(css)}; "
        f"style-src-attr 'unsafe-inline'; img-src data:; connect-src {asks}; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _digest(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()


@cache
def _asset(name: str) -> str:
    return (Path(ASSETS) / name).read_text(encoding="utf-8")
