"""How the demo is served: to this machine alone, from folders of its own, and without any network.

Gradio's own checks keep the paths of requests inside its cache; they are active from `launch` on (and not where a page
is mounted into another application). What it reads from the environment and what it may fetch is closed here.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from b2inst.config import ConfigError

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"
HOST_NAMES = [HOST, "localhost"]
SESSIONS = 16  # browser tabs whose images are kept; an older one has to choose its image again
# Whatever a page or a message makes a browser ask for, it asks nobody else.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = [
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


@contextmanager
def closed_environment() -> Iterator[Path]:
    """Settle what Gradio reads from the environment; enter it before the first import of Gradio.

    Yields:
        A new folder that is removed in the end. `cache` in it is the only one that files are served from.
    """
    for name in list(os.environ):
        # Variables of Gradio can open folders, listen elsewhere or make a public link; a proxy is not needed.
        if name.startswith("GRADIO_") or name.lower().endswith("_proxy"):
            del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="b2inst-demo-", ignore_cleanup_errors=True) as name:
        scratch = Path(name).resolve()
        (scratch / "cache").mkdir()
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": str(scratch / "cache"),
            "GRADIO_EXAMPLES_CACHE": str(scratch / "examples"),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        yield scratch


def refuse_network() -> None:
    """Let this process, from now on and to its end, connect to and look up nothing but this machine.

    A request can name an address as an image, which Gradio would fetch.
    """
    sys.addaudithook(_only_this_machine)


def _only_this_machine(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    if host is not None and not _is_this_machine(host.decode() if isinstance(host, bytes) else str(host)):
        raise PermissionError(f"{host}: the demo has no network access")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "")


def check_port(port: int) -> None:
    """See whether a port can be listened on.

    Raises:
        ConfigError: it cannot; another program has it, or the system keeps it.
    """
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise ConfigError(
            f"port={port}: cannot be listened on ({os.strerror(error.errno)}); give another, for example "
            f"port={port + 1 if 1024 <= port < 65535 else 7861}"
        ) from error


class Headers:
    """ASGI middleware that adds `HEADERS` to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def serve(page: gr.Blocks, look: dict[str, Any], port: int, max_megabytes: float) -> None:
    """Serve a page until it is interrupted.

    Args:
        page: of `demo_page.build`.
        look: theme and style of the page, as `launch` takes them.
        port: on this machine.
        max_megabytes: larger uploads are refused.

    Raises:
        ConfigError: the port has been taken in the meantime.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # The host is checked because another site can give its own name the address of this machine.
    middleware = [Middleware(Headers), Middleware(TrustedHostMiddleware, allowed_hosts=HOST_NAMES)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        page.launch(
            server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, inbrowser=False,
            show_error=True, allowed_paths=[], max_file_size=max(1, round(max_megabytes * 1_000_000)),
            footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, enable_monitoring=False, pwa=False,
            state_session_capacity=SESSIONS, app_kwargs={"middleware": middleware}, **look,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"port={port}: {error}") from error
    print(f"The demo is at http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print()
    finally:
        page.close(verbose=False)
