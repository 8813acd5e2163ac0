"""Stand before the application: whom it answers, and what a browser may do with the answers.

A page of another site that is open in the same browser can send requests to a server on this machine, and, with a name
that it lets point here, read the answers. So only requests to an address or a known name are answered, what changes or
costs something is refused to pages from elsewhere, and no answer may be used by them.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = frozenset({"localhost"})
READING = {"GET", "HEAD"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors {}"
)


class Guard:
    """Refuse requests to names that are not this server's, and from pages that are not; add security headers.

    Args:
        app: what answers the others.
        names: that the server is asked by, besides addresses and `localhost`.
        embedded_in: origin whose pages may show this one in a frame; None for nobody's.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str] = frozenset(), embedded_in: str | None = None):
        self.app, self.names = app, LOCAL_NAMES | {name.lower() for name in names}
        self.headers = {
            "content-security-policy": POLICY.format(embedded_in or "'none'"),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        app = self._refusal(scope["method"], Headers(scope=scope)) or self.app
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            line = f"this server does not answer to the name {host!r}; start it with --allow_host to let it"
            return JSONResponse({"error": line}, 421)
        if method not in READING and origin is not None and origin.partition("://")[2].lower() != host.lower():
            return JSONResponse({"error": f"pages of {origin!r} may not ask this of the server"}, 403)
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ip_address(name))
        except ValueError:
            return False
