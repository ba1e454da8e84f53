"""`simple-diffusion play`: a local web page that samples from a model and shows every step."""

import argparse
import socket
from typing import Any

from ..errors import BusyError, UsageError
from .options import command, device_options, ema_option, say, whole

HOST = "127.0.0.1"


def add(commands: Any) -> None:
    sub = command(commands, "play", run, "open a local web page: sample, see every step, inpaint, interpolate")
    sub.add_argument("model", metavar="MODEL", help="a run folder or a .safetensors file")
    ema_option(sub)
    sub.add_argument(
        "--port", type=whole(0, 65535), default=8321, metavar="N", help="port of the page (default 8321; 0: any free)"
    )
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    try:
        import uvicorn

        from ..play.server import create_app
    except ImportError as error:
        raise UsageError(f"play needs more packages ({error}): pip install 'simple-diffusion[play]'") from error
    from ..play.session import Session

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that has just stopped
        try:
            listener.bind((HOST, args.port))
            listener.listen()
        except OSError as error:
            raise BusyError(
                f"port {args.port} can't be used ({error.strerror}): add --port 0 for any free port"
            ) from None
        port = listener.getsockname()[1]
        app = create_app(Session(args.model, args.ema, args.device, args.precision), port)
        say(args, f"{args.model} is served at http://{HOST}:{port} until you press Ctrl-C.")
        settings = uvicorn.Config(
            app,
            log_level="critical",
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=200,
            timeout_graceful_shutdown=1,
        )
        uvicorn.Server(settings).run(sockets=[listener])
    return {"url": f"http://{HOST}:{port}"}
