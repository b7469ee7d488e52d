"""The API of the switch, at its unix socket."""

import http.client
import json
import os
import socket
import urllib.parse
import uuid

PATIENCE = 30  # seconds for an answer: a change waits until devices and disk have it
SILENCE = 45  # seconds without a line of an event stream, which has a comment every 15
MOST = 64 << 20  # bytes of an answer, which is of the host's own switch


class Unreachable(Exception):
    """No answer, or the switch asks to come back later."""


class Refused(Exception):
    """The switch refuses a request: problem details (RFC 9457)."""

    def __init__(self, status, body):
        self.status, self.kind = status, str(body.get("kind", "unknown"))
        super().__init__(f"{self.kind}: {body.get('detail', 'without a reason')}")


class Moved(Refused):
    """The configuration is another one than the request is about: it has to be read again."""


class Switch:
    """A connection for each request. Requests of one instance have ids that begin alike, so that it knows its own events."""

    def __init__(self, path):
        self.path = path
        self.name = f"neutron-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.count = 0

    def connect(self, timeout):
        connection = http.client.HTTPConnection("vifswitch", timeout=timeout)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        try:
            connection.sock.connect(self.path)
        except OSError:
            connection.sock.close()
            raise
        return connection

    def request(self, method, path, body=None, generation=None, timeout=PATIENCE):
        """The JSON of the answer, and the generation of the desired configuration."""
        self.count += 1
        headers = {"X-Request-Id": f"{self.name}-{self.count}"}
        if body is not None:
            body, headers["Content-Type"] = json.dumps(body), "application/json"
        if generation is not None:
            headers["If-Match"] = f'"{generation}"'
        try:
            connection = self.connect(timeout)
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                text = answer.read(MOST)
                if answer.length:
                    raise ValueError(f"the answer is longer than {MOST} bytes, or cut off")
            finally:
                connection.close()
            found = json.loads(text) if text else None
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise Unreachable(f"{method} {path} at {self.path}: {problem or type(problem).__name__}") from problem
        if answer.status < 400:
            tag = (answer.getheader("ETag") or "").strip('"')
            return found, int(tag) if tag.isdigit() else None
        found = found if isinstance(found, dict) else {}
        if answer.status == 412:
            raise Moved(answer.status, found)
        if answer.status in (408, 429, 503):
            raise Unreachable(f"{method} {path}: {Refused(answer.status, found)}")
        raise Refused(answer.status, found)

    def config(self, resolved=False):
        """The desired configuration, and its generation."""
        return self.request("GET", "/v1/config" + ("?resolved=true" if resolved else ""))

    def ports(self, owner):
        """Status of the ports with this label, by id."""
        query = urllib.parse.urlencode({"owner": owner, "fields": "port_id,status,status_code,status_reason"})
        return {port["port_id"]: port for port in self.request("GET", f"/v1/ports?{query}")[0]}

    def is_ready(self):
        """Whether the switch answers and can be changed. Takes two seconds at most."""
        try:
            return bool(self.request("GET", "/v1/status", timeout=2)[0].get("ready"))
        except (Unreachable, Refused):
            return False

    def is_own(self, event):
        """Whether a request of this instance has caused the event."""
        return str((event.get("by") or {}).get("request_id", "")).startswith(self.name + "-")

    def follow(self, after=None, connected=lambda: None):
        """Events as they happen, behind the id `after`, or from now on. Ends when the connection does."""
        query = "?follow=true" if after is None else f"?follow=true&after={after}"
        try:
            connection = self.connect(SILENCE)
            try:
                connection.request("GET", "/v1/events" + query, headers={"Accept": "text/event-stream"})
                answer = connection.getresponse()
                if answer.status >= 400:
                    raise Refused(answer.status, json.loads(answer.read(MOST)))
                connected()
                while line := answer.readline(1 << 20):
                    if line.startswith(b"data:"):
                        yield json.loads(line[5:])
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise Unreachable(f"events at {self.path}: {problem or type(problem).__name__}") from problem


def path_of(kind, name):
    """Path of an entity, whose id may have any characters."""
    return f"/v1/{kind}/{urllib.parse.quote(name, safe='')}"
