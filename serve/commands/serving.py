"""``serve``: start the service and stay until Ctrl-C."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from serve.commands.output import HomeOption, JsonOption
from serve.commands.target import parse_sources, read_settings

if TYPE_CHECKING:
    from serve.settings import Settings


def serve(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="Model to serve, repeatable: NAME as registered, NAME=FILE or FILE to register and promote first.",
            metavar="NAME[=FILE]",
        ),
    ] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", help="Number of replicas.")] = None,
    min_replicas: Annotated[int | None, typer.Option("--min-replicas", help="Fewest replicas, autoscaling.")] = None,
    max_replicas: Annotated[int | None, typer.Option("--max-replicas", help="Most replicas, autoscaling.")] = None,
    gpus: Annotated[
        float | None, typer.Option("--gpus", help="GPUs a replica reserves; a fraction shares one.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on; default 8000.")] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="auto, openvino, onnxruntime, torch or fake; default auto.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="auto, fp32, bf16 or fp16; default auto.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the detector service and stay until Ctrl-C. Without --model it serves the demo detector.

    Every option has a setting STEELYARD_<NAME> in the environment; the option wins.
    """
    overrides = {
        "replicas": replicas,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "gpus": gpus,
        "host": host,
        "port": port,
        "backend": backend,
        "precision": precision,
    }
    sources = parse_sources(model or [])
    settings = read_settings(home, models=tuple(sources) or None, **overrides)
    from serve.launch import run

    wanted = sources or dict.fromkeys(settings.models)
    if not as_json:
        raise typer.Exit(run(settings, wanted))
    with announced_as_json(settings), contextlib.redirect_stdout(sys.stderr):
        code = run(settings, wanted)
    raise typer.Exit(code)


@contextlib.contextmanager
def announced_as_json(settings: "Settings", interval_s: float = 0.1) -> Iterator[None]:
    """Write ``{"url", "pid"}`` on stdout once the service of this process is ready, as its home folder then says.

    interval_s: seconds between two looks.
    """
    from serve.home import read_record

    out = sys.stdout
    done = threading.Event()

    def watch() -> None:
        while not done.wait(interval_s):
            record = read_record(settings.root)
            if record is not None and record.pid == os.getpid():
                out.write(json.dumps({"url": record.url, "pid": record.pid}) + "\n")
                out.flush()
                return

    thread = threading.Thread(target=watch, name="announce", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
