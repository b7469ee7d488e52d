#!/usr/bin/env python3
"""A client of vifswitch: makes a port so, waits for it, and follows events.

    client.py SOCKET put PORT.json        # puts the port idempotently, and waits until it is ACTIVE
    client.py SOCKET toggle PORT_ID       # sets it up if it is down, and down if it is up
    client.py SOCKET delete PORT_ID
    client.py SOCKET ports [FILTER=VALUE…]
    client.py SOCKET events [AFTER]       # prints events as they happen, from the id AFTER on

Python's standard library only. Each write may be repeated: a lost answer is not a lost write.
"""
import http.client
import json
import socket
import sys
import time
import urllib.parse


class Refused(Exception):
    """The switch refused: problem details (RFC 9457)."""

    def __init__(self, status, body):
        super().__init__(body["detail"])
        self.status, self.kind, self.problems = status, body["kind"], body["problems"]


class Switch:
    """The API at a unix socket, with a connection for each request."""

    def __init__(self, path, retries=8):
        self.path, self.retries = path, retries

    def connect(self, timeout=60):
        connection = http.client.HTTPConnection("vifswitch", timeout=timeout)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        connection.sock.connect(self.path)
        return connection

    def request(self, method, path, body=None, headers=None):
        """The JSON of the answer and its headers. Repeats what may succeed later: no connection, 429, 503."""
        headers = dict(headers or {})
        if body is not None:
            headers["Content-Type"] = "application/json"
        for attempt in range(self.retries + 1):
            try:
                connection = self.connect()
                connection.request(method, path, json.dumps(body) if body is not None else None, headers)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                if attempt == self.retries:
                    raise
            else:
                if answer.status < 400:
                    return (json.loads(text) if text else None), answer.headers
                if answer.status not in (429, 503) or attempt == self.retries:
                    raise Refused(answer.status, json.loads(text))
            time.sleep(min(0.05 * 2**attempt, 2))

    def put_port(self, port, wait=30):
        """Makes the port so, new or not, and waits until it is ACTIVE; `not_active` in the answer says if it is not."""
        port = dict(port)
        path = "/v1/ports/" + urllib.parse.quote(port.pop("port_id"), safe="")
        return self.request("PUT", f"{path}?wait={wait}", port)[0]

    def change_port(self, port_id, change):
        """Changes keys of a port: `change` makes them of the port as it is. If another writer was faster, once more."""
        path = "/v1/ports/" + urllib.parse.quote(port_id, safe="")
        while True:
            port, headers = self.request("GET", path)
            try:
                return self.request("PATCH", path, change(port), {"If-Match": headers["ETag"]})[0]
            except Refused as refused:
                if refused.status != 412:
                    raise

    def delete_port(self, port_id):
        self.request("DELETE", "/v1/ports/" + urllib.parse.quote(port_id, safe=""))

    def ports(self, **filters):
        """All ports that match, page by page."""
        url = "/v1/ports?" + urllib.parse.urlencode({"limit": 500, **filters})
        while url:
            page, headers = self.request("GET", url)
            yield from page
            link = headers["Link"]
            url = link[link.index("<") + 1 : link.index(">")] if link else None

    def events(self, after=None):
        """Events from now on, or behind the id `after`; without loss or repeat when the connection ends."""
        while True:
            query = {"follow": "true"} if after is None else {"follow": "true", "after": after}
            try:
                connection = self.connect(timeout=None)
                connection.request("GET", "/v1/events?" + urllib.parse.urlencode(query))
                answer = connection.getresponse()
                if answer.status >= 400:
                    raise Refused(answer.status, json.loads(answer.read()))
                for line in answer:
                    event = json.loads(line)
                    after = event.get("id", after)
                    yield event
            except (OSError, http.client.HTTPException):
                pass
            except Refused as refused:
                if refused.status not in (429, 503):
                    raise
            time.sleep(0.2)


def main(path, command, *arguments):
    switch = Switch(path)
    if command == "put":
        with open(arguments[0], encoding="utf-8") as file:
            answer = switch.put_port(json.load(file))
        print(json.dumps(answer))
        return 1 if answer.get("not_active") else 0
    if command == "toggle":
        switch.change_port(arguments[0], lambda port: {"admin_state_up": not port["admin_state_up"]})
    elif command == "delete":
        switch.delete_port(arguments[0])
    elif command == "ports":
        for port in switch.ports(fields="port_id,status,status_code", **dict(a.split("=", 1) for a in arguments)):
            print(json.dumps(port))
    elif command == "events":
        for event in switch.events(*map(int, arguments)):
            print(json.dumps(event), flush=True)
    else:
        raise SystemExit(__doc__)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except Refused as refused:
        for problem in refused.problems:
            about = problem.get("port_id") or problem["key"]
            print(f"{about}: {problem['message']}", file=sys.stderr)
        sys.exit(1)
    except TypeError:
        sys.exit(__doc__)
