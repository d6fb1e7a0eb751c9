"""The gateway's own HTTP server: a request to it does not pass Serve's proxy, which costs several messages each.

Gateways share their port (SO_REUSEPORT): the kernel spreads connections over them, and one that dies leaves it to the
others. Whoever starts them holds it meanwhile, so that no other server gets in between.
"""

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEEP_ALIVE_SECONDS = 30


def bind(host: str, port: int, shared: bool = False) -> socket.socket:
    """shared: with others who say so too. Raises OSError where somebody else listens there, or holds it; connections of
    a server that has ended do not count."""
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        s.bind((host, port))
    except OSError:
        s.close()
        raise
    return s


def hold(host: str, port: int) -> socket.socket:
    """The port, at which from now on only gateways can listen. Raises OSError as `bind`."""
    bind(host, port).close()
    s = bind(host, port, shared=True)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # with it, others who do not share could bind too
    return s


class Watched:
    """The same application; work for a client who has gone is cancelled, as Serve's proxy does it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watcher: asyncio.Task[None] | None = None
        gone, answered = asyncio.Event(), False

        async def watch() -> None:
            await receive()  # after the body nothing else comes but the client's going, or the response's end
            gone.set()
            if not answered:
                work.cancel()

        async def received() -> Message:
            nonlocal watcher
            if watcher is not None:
                await gone.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                watcher = asyncio.create_task(watch())
            return message

        async def sent(message: Message) -> None:
            nonlocal answered
            answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        work = asyncio.ensure_future(self._app(scope, received, sent))
        try:
            await work
        except asyncio.CancelledError:
            if not gone.is_set():
                work.cancel()
                raise
        finally:
            if watcher is not None:
                watcher.cancel()


class Listener:
    """Listens in the running event loop, until its process ends."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        """Raises OSError."""
        config = uvicorn.Config(
            Watched(app),
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            lifespan="off",
            proxy_headers=False,  # who asks is who is connected
            server_header=False,
            access_log=False,
            log_config=None,
        )
        self._task = asyncio.create_task(uvicorn.Server(config).serve([bind(host, port, shared=True)]))

    def check(self) -> None:
        """Raises RuntimeError where it does not listen any more."""
        if self._task.done():
            raise RuntimeError("the HTTP server has ended")
