"""Write what was found: as a table for people, JSON, WebVTT cues, or a playlist.

Nothing that stands in a path or a tag can break a format: whatever is not printable is shown escaped, and a path that
no line can hold becomes a URI.
"""

import html
import json
import os
import textwrap
from collections.abc import Callable

from .hits import Hit, Results
from .library import shown
from .moments import Span

WIDTH = 100
STRENGTH = 5  # marks of `Hit.match`


def clock(seconds: float, hours: bool = False) -> str:
    """Return seconds as `3:07`, or `1:02:33` from an hour on; with `hours` as WebVTT has them, `00:03:07.250`."""
    if hours:
        milliseconds = round(max(seconds, 0.0) * 1000)
        whole, rest = divmod(milliseconds, 1000)
        return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{rest:03d}"
    whole = int(max(seconds, 0.0))
    return (
        f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


def one_line(text: str) -> str:
    """Return a text in one line, what is not printable replaced by a space."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def span_text(span: Span) -> str:
    """Return start and end of a span as people read them."""
    return f"{clock(span.start)}-{clock(span.end)}"


def as_table(results: Results, query: str) -> str:
    """Return a line for each hit, `rank score name span`, below it which sentence is heard where, and its copies."""
    lines = []
    for hit in results:
        span = span_text(hit.spans[0]) if hit.spans else ""
        name = textwrap.shorten(one_line(hit.name), WIDTH - 36, placeholder="...")
        lines.append(f"{hit.rank:3d}  {hit.score:8.3f}  {hit.deviations:+5.1f} sd  {span:15} {name}")
        if len(hit.sentences) > 1:
            for one in hit.sentences:
                said = textwrap.shorten(one_line(one.text), WIDTH - 30, placeholder="...")
                lines.append(f"{'':24}{span_text(one) if one.heard else 'not heard':15} {said}")
        lines += [f"{'':24}{'same recording':15} {one_line(shown(os.fsencode(path)))}" for path in hit.copies]
    return "".join(f"{line}\n" for line in lines)


def as_json(results: Results, query: str) -> str:
    """Return one JSON object: `query`, and what `Results.to_dict` says; the fields of a hit are those of [`Hit`]."""
    return json.dumps({"query": query, **results.to_dict()}, indent=2) + "\n"


def as_webvtt(results: Results, query: str) -> str:
    """Return cues for the best hit, whose times they are in: each sentence that is heard, or the best spans."""
    if not results:
        return "WEBVTT\n"
    hit = results[0]
    sentences = [(one, one.text) for one in hit.sentences if one.heard] if len(hit.sentences) > 1 else []
    cues = sentences or [(one, query) for one in hit.spans]
    blocks = ["WEBVTT", f"NOTE\n{_cue_text(hit.name)}\n{hit.uri}"]
    for number, (span, text) in enumerate(sorted(cues, key=lambda cue: (cue[0].start, cue[0].end)), 1):
        times = f"{clock(span.start, hours=True)} --> {clock(max(span.end, span.start + 0.001), hours=True)}"
        blocks.append(f"{number}\n{times}\n{_cue_text(text)} ({span.score:.2f})")
    return "\n\n".join(blocks) + "\n"


def _cue_text(text: str) -> str:
    """Return a text in which neither a tag nor an arrow is left."""
    return html.escape(one_line(text), quote=False)


def as_m3u(results: Results, query: str) -> str:
    """Return a playlist in UTF-8; VLC begins each track where its best span begins, other players at its start."""
    lines = ["#EXTM3U", f"#PLAYLIST:{one_line(query)}"]
    for hit in results:
        lines.append(f"#EXTINF:{round(hit.seconds)},{one_line(hit.name)}")
        if hit.spans:
            lines.append(f"#EXTVLCOPT:start-time={hit.spans[0].start:.2f}")
        lines.append(playlist_path(hit))
    return "".join(f"{line}\n" for line in lines)


def playlist_path(hit: Hit) -> str:
    """Return the file as a line: its path, or a URI where a line cannot hold that."""
    is_plain = hit.file.isprintable() and hit.file == hit.file.strip() and not hit.file.startswith("#")
    return hit.file if is_plain else hit.uri


FORMATS: dict[str, Callable[[Results, str], str]] = {
    "table": as_table,
    "json": as_json,
    "webvtt": as_webvtt,
    "m3u": as_m3u,
}
