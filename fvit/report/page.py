"""One HTML file that holds everything: style, scripts, and data as compressed text, so that nothing which a
record says is ever read as HTML."""

from __future__ import annotations

import json
import re
import zlib
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import fvit
from fvit.commands import one_line

PAGE = Path(__file__).parent / "page"
SHARED = Path(fvit.__file__).parent / "page"

IMPORT = re.compile(r'^import \* as (\w+) from "\./([\w.]+)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?function (\w+)|const (\w+))", re.MULTILINE)


def page_around(title: str, data: Mapping[str, Any], chunks: Iterable[str]) -> Iterator[str]:
    """The page, piece by piece. data: what is there when it opens. chunks: lines of base64 that it unpacks
    when they are looked at."""
    style = (SHARED / "common.css").read_text() + (PAGE / "report.css").read_text()
    script = bundled("report.js", {file.name: file.read_text() for file in _scripts()})
    whole = Template((PAGE / "report.html").read_text()).substitute(
        title=escape(one_line(title)), style=style, style_hash=_hash(style), script=script,
        script_hash=_hash(script), data=packed(json.dumps(data, allow_nan=False).encode()), chunks="\0",
    )  # fmt: skip
    before, after = whole.split("\0")
    yield before
    for place, chunk in enumerate(chunks):
        yield f'<script type="text/plain" id="chunk-{place}">{chunk}</script>\n'
    yield after


def bundled(entry: str, sources: Mapping[str, str]) -> str:
    """One script of the modules that `entry` imports, by `import * as NAME from "./FILE";`, from their texts
    by FILE: each of them runs once, before those that import it."""
    written: dict[str, str] = {}

    def write(name: str) -> None:
        if name in written:
            return
        source = sources[name]
        for _, other in IMPORT.findall(source):
            write(other)
        names = ", ".join(function or constant for function, constant in EXPORT.findall(source))
        body = EXPORT.sub("", IMPORT.sub(r'const \1 = modules["\2"];\n', source))
        written[name] = f'modules["{name}"] = (() => {{\n{body}return {{ {names} }};\n}})();\n'

    write(entry)
    return "const modules = {};\n" + "".join(written.values())


def packed(data: bytes) -> str:
    """Compressed (zlib), in base64."""
    return in_text(zlib.compress(data))


def in_text(data: bytes) -> str:
    """In base64."""
    return b64encode(data).decode()


def _scripts() -> Iterator[Path]:
    yield from SHARED.glob("*.js")
    yield from PAGE.glob("*.js")


def _hash(text: str) -> str:
    """As a Content-Security-Policy has it."""
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
