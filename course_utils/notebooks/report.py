"""The report of a run: one HTML page with everything in it, to be read on a screen, on a phone or on paper.

Which lessons ran, how long they took and how much memory they needed, what went wrong and where, and every
claim of every lesson with its verdict. The page loads nothing from anywhere.
"""

from __future__ import annotations

import html
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from course_utils.ledger import COLOUR, HOLDING, SYMBOL, VERDICTS, count_in_words, rows_html
from course_utils.notebooks.processes import write_atomically
from course_utils.notebooks.progress import duration

STATUS = {  # status of a lesson: symbol, word, class
    "succeeded": ("✓", "ran", "good"),
    "failed": ("✗", "failed", "bad"),
    "kernel died": ("✗", "kernel died", "bad"),
    "timed out": ("✗", "timed out", "bad"),
    "stopped": ("■", "stopped", "bad"),
}

STYLE = """
:root{color-scheme:light;--ink:#1c2024;--soft:#5b636b;--line:#d9dee3;--wash:#f4f6f8;--good:#00714d;
--fair:#7a5200;--bad:#a3341f;
--link:#0b5cad;--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0;background:#fff;color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main,header,footer{max-width:68rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.5rem}.course{margin:0;color:var(--soft);letter-spacing:.01em}
h1{font-size:2rem;line-height:1.2;margin:.2rem 0 .6rem;font-weight:650}
h2{font-size:1.3rem;margin:2.8rem 0 .8rem;font-weight:650}
h3{font-size:1.05rem;margin:1.8rem 0 .5rem;font-weight:650}
p{margin:.4rem 0}a{color:var(--link)}
a:focus-visible,summary:focus-visible{outline:3px solid #f0a30a;outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:1rem;background:#fff;padding:.5rem}
.verdict{font-size:1.12rem}.good{color:var(--good)}.fair{color:var(--fair)}.bad{color:var(--bad)}
.soft{color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:1.6rem 0;
padding:0}
.facts div{background:var(--wash);border-radius:.6rem;padding:.8rem 1rem}
.facts dt{color:var(--soft);font-size:.85rem}
.facts dd{margin:.1rem 0 0;font-size:1.45rem;font-weight:650;line-height:1.25;
font-variant-numeric:tabular-nums}
.facts dd small{font-size:.85rem;font-weight:400;color:var(--soft);display:block}
.machine{display:flex;flex-wrap:wrap;gap:.2rem 1.6rem;margin:0;color:var(--soft);font-size:.92rem}
.machine div{display:flex;gap:.4rem}.machine dd{margin:0;color:var(--ink)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:0 0 .5rem;font-size:.92rem}
th{text-align:left;font-weight:600;font-size:.85rem;color:var(--soft);border-bottom:2px solid var(--line);
padding:.4rem .8rem .4rem 0}
td{border-bottom:1px solid var(--line);padding:.55rem .8rem .55rem 0;vertical-align:top}
.n{text-align:right}.lesson b{font-weight:600}.lesson .soft{display:block;font-size:.85rem}
.state{white-space:nowrap;font-weight:600}
.state small{display:block;font-weight:400;color:var(--soft);white-space:normal}
.bar{display:block;width:7rem;height:.45rem;margin:.3rem 0 0 auto;background:var(--line);border-radius:.3rem;
overflow:hidden}
.bar i{display:block;height:100%;background:#3d7dbd}.bar.full i{background:var(--bad)}
.over{display:block;font-size:.8rem}.links{white-space:nowrap}
.claims table{table-layout:fixed}.claims td{white-space:normal!important}.claims th:nth-child(1){width:21%}
.claims th:nth-child(3){width:14%}
.claims th:nth-child(4){width:21%}.claims th:nth-child(5){width:15%}
.claims td:nth-child(5){color:var(--soft);font-size:.92rem}
.broken{border-left:4px solid var(--bad);background:var(--wash);border-radius:0 .6rem .6rem 0;
padding:.8rem 1.1rem;margin:1rem 0}
.broken h3{margin-top:0}
pre{font:.85rem/1.5 var(--mono);background:#fff;border:1px solid var(--line);border-radius:.4rem;
padding:.7rem .9rem;overflow-x:auto;white-space:pre;margin:.6rem 0}pre.wrap{white-space:pre-wrap}
summary{cursor:pointer;color:var(--link)}
footer{color:var(--soft);font-size:.88rem;padding-top:2.5rem;padding-bottom:3rem}
@media(max-width:44rem){h1{font-size:1.6rem}header{padding-top:1.5rem}
thead{position:absolute;left:-99rem}table,caption,tbody,tr,td{display:block;width:100%}
tr{border:1px solid var(--line);border-radius:.6rem;
padding:.6rem .9rem;margin:0 0 .8rem}
td,.claims td{border:0;padding:.12rem 0!important;text-align:left!important;white-space:normal!important}
td[data-label]::before{content:attr(data-label) ": ";color:var(--soft)}.bar{margin:.2rem 0;width:90%}
td[data-label]{display:inline-block;width:50%;vertical-align:top}.over{display:inline;padding-left:.4rem}
.claims td:nth-child(3)::before{content:"expected ";color:var(--soft)}
.claims td:nth-child(4)::before{content:"measured ";color:var(--soft)}}
@media print{body{font-size:10.5pt}main,header,footer{max-width:none;padding:0}.skip{display:none}
a{color:inherit;text-decoration:none}
tr,.broken,.facts{break-inside:avoid}h2,h3,caption{break-after:avoid}
.facts div,.broken{border:1px solid var(--line)}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}pre{white-space:pre-wrap}
details>summary,.links{display:none}}
"""


def write_report(out_dir: Path | str) -> Path:
    """Write `report.html` beside the `results.json` of a run."""
    from course_utils.notebooks.runner import load_results

    path = Path(out_dir) / "report.html"
    write_atomically(path, report_html(load_results(out_dir)))
    return path


def report_html(results: dict[str, Any]) -> str:
    """The page for what `results.json` holds."""
    rows = results["lessons"]
    claims = [claim for row in rows for claim in row["claims"]]
    broken = [row for row in rows if row["status"] != "succeeded"]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>A run of the course: {_sentence(rows, claims, plain=True)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#lessons">Skip to the lessons</a>
<header>
<p class="course">Preference alignment, measured</p>
<h1>A run of the course</h1>
<p class="verdict">{_sentence(rows, claims)}</p>
{_facts(results, rows, claims)}
{_machine(results)}
</header>
<main>
{_broken(broken)}
<h2 id="lessons">Lessons</h2>
{_lessons(results, rows)}
<h2 id="claims">Claims</h2>
{_claims(rows, claims)}
</main>
<footer>
<p>Every number on this page was computed on the machine named above.
The raw data: <a href="results.json">results.json</a>.</p>
</footer>
</body>
</html>
"""


def _sentence(rows: list[dict[str, Any]], claims: list[dict[str, Any]], plain: bool = False) -> str:
    good = sum(row["status"] == "succeeded" for row in rows)
    bad = len(rows) - good
    lessons = (
        f"{good} of {len(rows)} lessons ran from top to bottom"
        if bad
        else f"all {len(rows)} lessons ran from top to bottom"
    )
    if not rows:
        lessons = "no lesson has run yet"
    lessons = lessons[0].upper() + lessons[1:]
    verdicts = count_in_words(claim["verdict"] for claim in claims)
    text = f"{lessons}" + (f"; of {len(claims)} claims, {verdicts}." if claims else ".")
    if plain:
        return html.escape(text)
    symbol, kind = ("✗", "bad") if bad else ("✓", "good")
    return f'<b class="{kind}">{symbol}</b> {html.escape(text)}'


def _facts(results: dict[str, Any], rows: list[dict[str, Any]], claims: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    seconds = sum(row["seconds"] for row in rows)
    heaviest = max(rows, key=lambda row: row["peak_memory_mb"])
    slowest = max(rows, key=lambda row: row["seconds"])
    good = sum(row["status"] == "succeeded" for row in rows)
    holds = sum(claim["verdict"] in HOLDING for claim in claims)
    facts = [
        ("Lessons", f"{good} of {len(rows)}", "ran to the end"),
        ("Claims", f"{holds} of {len(claims)}", "hold, some with a correction"),
        ("Time in cells", duration(seconds), f"longest: {slowest['number']}, {slowest['seconds']:.0f} s"),
        ("Peak memory", f"{heaviest['peak_memory_mb']:,.0f} MB", f"in lesson {heaviest['number']}"),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(value)}<small>{html.escape(note)}</small></dd></div>"
        for name, value, note in facts
    )
    return f'<dl class="facts">{items}</dl>'


def _machine(results: dict[str, Any]) -> str:
    facts = {"finished": _when(results.get("finished", "")), **results.get("machine", {})}
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>"
        for name, value in facts.items()
        if value
    )
    return f'<dl class="machine" aria-label="When and where">{items}</dl>'


def _lessons(results: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    limit = float(results.get("lesson_seconds", 90))
    memory = float(results.get("lesson_memory_mb", 1200))
    body = "".join(_lesson_row(row, limit, memory) for row in rows)
    total = sum(row["seconds"] for row in rows)
    heads = [
        ("Status", ""),
        ("Lesson", ""),
        ("Seconds", "n"),
        (f"Share of {limit:g} s", "n"),
        ("Peak memory", "n"),
        ("Claims", "n"),
        ("Read", "links"),
    ]
    head = "".join(f'<th scope="col"{_class(kind)}>{name}</th>' for name, kind in heads)
    caption = f"A lesson may take {limit:g} s on two cores and {memory:,.0f} MB. Together: {duration(total)}."
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _lesson_row(row: dict[str, Any], limit: float, memory: float) -> str:
    symbol, word, kind = STATUS.get(row["status"], STATUS["failed"])
    note = {
        "kept": f"unchanged since {_when(row['ran_at'])}",
        "earlier": f"earlier run, {_when(row['ran_at'])}",
    }.get(row["now"], "")
    share = row["seconds"] / limit
    full = " full" if share > 1 else ""
    slow = _over(share > 1)
    heavy = _over(row["peak_memory_mb"] > memory)
    links = " · ".join(
        f'<a href="{row[key]}" aria-label="{label} of {row["name"]}">{label}</a>'
        for key, label in (("html", "page"), ("notebook", "notebook"))
        if row[key]
    )
    parameters = ", ".join(f"{name}={value!r}" for name, value in row["parameters"].items())
    return (
        f'<tr><td class="state"><span class="{kind}">{symbol} {word}</span>'
        + (f"<small>{html.escape(note)}</small>" if note else "")
        + "</td>"
        f'<td class="lesson"><b>{row["number"]} · {html.escape(row["title"])}</b>'
        f'<span class="soft">{html.escape(row["world"])} world'
        + (f", with {html.escape(parameters)}" if parameters else "")
        + "</span></td>"
        f'<td class="n" data-label="seconds">{row["seconds"]:.1f}</td>'
        f'<td class="n" data-label="share">{share:.0%}{slow}<span class="bar{full}" aria-hidden="true">'
        f'<i style="width:{min(share, 1):.0%}"></i></span></td>'
        f'<td class="n" data-label="memory">{row["peak_memory_mb"]:,.0f} MB{heavy}</td>'
        f'<td class="n" data-label="claims">{len(row["claims"])}</td><td class="links">{links}</td></tr>'
    )


def _over(limit_passed: bool) -> str:
    return '<span class="over bad">▲ over the limit</span>' if limit_passed else ""


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _broken(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    parts = []
    for row in rows:
        cell = row["failed"] or {
            "index": 0,
            "source": "",
            "error_name": row["status"],
            "message": "",
            "traceback": "",
        }
        message = f": {cell['message']}" if cell["message"] else ""
        trace = cell["traceback"]
        details = (
            f"<details><summary>The whole traceback</summary><pre>{html.escape(trace)}</pre></details>"
            if trace
            else ""
        )
        source = f"<pre><code>{html.escape(cell['source'])}</code></pre>" if cell["source"] else ""
        parts.append(
            f'<section class="broken"><h3>{row["number"]} · {html.escape(row["title"])}: '
            f"{html.escape(row['status'])} "
            f"in cell {cell['index'] + 1}</h3>{source}"
            f'<pre class="wrap"><b class="bad">{html.escape(cell["error_name"])}</b>'
            f"{html.escape(message)}</pre>{details}</section>"
        )
    return f'<h2 id="broken">What stopped</h2>{"".join(parts)}'


def _claims(rows: list[dict[str, Any]], claims: list[dict[str, Any]]) -> str:
    if not claims:
        return '<p class="soft">The lessons of this run made no claims.</p>'
    counts = Counter(claim["verdict"] for claim in claims)
    legend = " · ".join(
        f'<span style="color:{COLOUR[verdict]}"><b>{SYMBOL[verdict]} {verdict}</b></span> {counts[verdict]}'
        for verdict in VERDICTS
    )
    tables = "".join(
        f"<h3>{row['number']} · {html.escape(row['title'])}</h3>{rows_html(row['claims'])}"
        for row in rows
        if row["claims"]
    )
    return f'<p>{legend}</p><div class="claims">{tables}</div>'


def _when(stamp: str) -> str:
    try:
        moment = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
