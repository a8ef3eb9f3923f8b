"""fvit-serve: bundles behind HTTP, and keys for those who may ask."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import resource
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from fvit import demo
from fvit.commands import VersionOption, finite
from fvit.errors import FvitError
from fvit.extras import require

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

_serving = typer.Typer(add_completion=False)
_keys = typer.Typer(add_completion=False)


@_keys.command(no_args_is_help=True)
def fvit_serve_key(
    file: Annotated[Path, typer.Argument(help="The file of keys; made where there is none.")],
    name: Annotated[str, typer.Argument(help="Whose key it is: what logs say.")],
) -> None:
    """Make a key: its salted hash goes into the file, the key itself is printed this once."""
    from fvit.service.keys import new_key

    print(new_key(file, name=name))


@_serving.command(no_args_is_help=True)
def fvit_serve(
    bundles: Annotated[
        list[str], typer.Argument(help="Bundles, or NAME=BUNDLE; the first is the default. demo is embedded.")
    ],
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    device: Annotated[str, typer.Option(help="As for fvit-certify.")] = "cpu",
    batch: Annotated[str | None, typer.Option(help="Copies at once, or auto, as for fvit-certify.")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Who may ask: a file made by  fvit-serve key FILE NAME.")
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open-to-all", help="Listen beyond this machine without keys.")
    ] = False,
    max_n: Annotated[int, typer.Option(min=1, help="Copies of one image.")] = 100_000,
    max_waiting: Annotated[int, typer.Option(min=1, help="Rows that may wait for a device.")] = 100_000,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="Seconds of one refinement.")
    ] = 60,
    max_body: Annotated[int, typer.Option(min=1, help="MB of one request.")] = 16,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Pixels of one image, before it is decoded.")
    ] = 16_000_000,
    requests_a_minute: Annotated[int | None, typer.Option(min=1, help="Of one key.")] = None,
    copies_a_minute: Annotated[int | None, typer.Option(min=24, help="Of one key.")] = None,
    drain: Annotated[float, typer.Option(min=0, help="Seconds to finish in after SIGTERM.")] = 30,
    _version: VersionOption = False,
) -> None:
    """Serve certificates over HTTP, and a page to watch them grow at /.

    fvit-serve key FILE NAME  makes a key. SIGTERM ends it when what runs is finished.
    """
    for package in PACKAGES:
        require(package, extra="serve", purpose="fvit-serve")
    from fvit.runtime.loading import load
    from fvit.service.app import Service
    from fvit.service.keys import Keys
    from fvit.service.life import bind, serve
    from fvit.service.limits import Limits
    from fvit.service.wire import Life, log

    if keys is None and not open_to_all and not _is_loopback(host):
        raise FvitError(
            f"without keys anybody who reaches {host} may ask: give --keys FILE, or --open-to-all to mean it"
        )
    rows = _batch(batch)
    known = Keys(keys, on_error=lambda said: log(event="keys", error=said)) if keys is not None else None
    folders = _named(bundles)
    limits = Limits(
        body=max_body << 20, pixels=max_pixels, n=max_n, seconds=max_seconds, waiting=max_waiting,
        requests=requests_a_minute, copies=copies_a_minute,
    )  # fmt: skip
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is one

    async def run(models: dict[str, Any]) -> None:
        life = Life(drain)
        service = Service(models, limits=limits, keys=known, life=life)
        place = f"http://{_shown(bound.getsockname())}"

        def ready() -> None:
            log(event="ready", address=place, models=list(models))
            print(f"page and API at {place} (Ctrl-C ends)", file=sys.stderr)

        await serve(service.app, bound, life, on_ready=ready)

    with ExitStack() as opened:
        bound = opened.enter_context(bind(host, port))
        models = {
            name: opened.enter_context(load(folder, device=device, batch=rows))
            for name, folder in folders.items()
        }
        for vit in models.values():
            vit.predict(np.zeros((*vit.pipeline.image_size, 3), np.uint8))  # what is slow only once
        asyncio.run(run(models))


def _batch(given: str | None) -> int | Literal["auto"] | None:
    if given == "auto":
        return "auto"
    if given is not None and not re.fullmatch(r"\d{1,9}", given):
        raise FvitError(f"--batch is '{given}': give a number of copies from 1 on, or auto")
    return None if given is None else int(given)


def _named(bundles: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for bundle in bundles:
        name, equals, folder = bundle.partition("=")
        if not equals:
            name, folder = bundle if bundle == demo.NAME else Path(bundle).resolve().name, bundle
        if not NAME.fullmatch(name):
            raise FvitError(f"'{name}' is no name for a model: use letters, digits, '_', '.' or '-'")
        if name in named:
            raise FvitError(f"two models are named {name}: give NAME=BUNDLE")
        named[name] = folder
    return named


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def app(*, standalone_mode: bool) -> Any:
    """fvit-serve, or  fvit-serve key."""
    if sys.argv[1:2] == ["key"]:
        return _keys(args=sys.argv[2:], prog_name="fvit-serve key", standalone_mode=standalone_mode)
    return _serving(standalone_mode=standalone_mode)
