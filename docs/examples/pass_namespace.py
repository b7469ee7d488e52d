#!/usr/bin/env python3
"""Attaches a port whose network namespace is passed to vifswitch as a descriptor.

    pass_namespace.py SOCKET PORT.json NAMESPACE

PORT.json is a port with its `device_id`; NAMESPACE the path of a namespace as this process sees it, such as
/proc/4711/ns/net. Python's standard library only.
"""
import http.client
import json
import os
import socket
import sys
import urllib.parse


class Switch(http.client.HTTPConnection):
    """The API at a unix socket. Passes descriptors with the first bytes that it sends."""

    def __init__(self, path, descriptors):
        super().__init__("vifswitch")
        self.path, self.descriptors = path, descriptors

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)

    def send(self, data):
        if self.sock is None:
            self.connect()
        if self.descriptors:
            sent = socket.send_fds(self.sock, [data], self.descriptors)
            self.descriptors, data = [], data[sent:]
        super().send(data)


def main(path, port, namespace):
    with open(port, encoding="utf-8") as file:
        body = json.load(file)
    # The first descriptor of the connection.
    body["device"]["netns"] = "fd:0"
    switch = Switch(path, [os.open(namespace, os.O_RDONLY)])
    url = f"/v1/vms/{urllib.parse.quote(body['device_id'], safe='')}/ports"
    switch.request("POST", url, json.dumps(body), {"Content-Type": "application/json"})
    answer = switch.getresponse()
    print(answer.read().decode())
    return 0 if answer.status == 201 else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
