"""`simple-diffusion play`: a web page on this machine to draw with a model and watch every step."""

import argparse
import socket
from typing import Any

from ..errors import BusyError, UsageError
from .options import command, device_options, ema_option, say, whole

HOST = "127.0.0.1"


def add(commands: Any) -> None:
    sub = command(commands, "play", run, "a web page on this machine: draw, watch every step, fill in, go between")
    sub.add_argument("model", metavar="MODEL", help="a run folder or a .safetensors file")
    ema_option(sub)
    sub.add_argument(
        "--port", type=whole(0, 65535), default=8321, metavar="N", help="of the page (default 8321; 0 any free one)"
    )
    device_options(sub)


def run(args: argparse.Namespace) -> dict[str, Any]:
    try:
        import uvicorn

        from ..play.server import app_of
    except ImportError as error:
        raise UsageError(f"play needs a package ({error}): pip install 'simple-diffusion[play]'") from error
    from ..play.session import Session

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # another one may have ended just now
        try:
            listener.bind((HOST, args.port))
            listener.listen()
        except OSError as error:
            raise BusyError(
                f"port {args.port} can't be used ({error.strerror}): add --port 0 for any free one"
            ) from None
        port = listener.getsockname()[1]
        app = app_of(Session(args.model, args.ema, args.device, args.precision), port)
        say(args, f"{args.model} is at http://{HOST}:{port} until Ctrl-C.")
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
