"""A WSGI application of OpenStack in a threaded server, for scripts/openstack-lab. Runs in its virtual environment.

    openstack_wsgi.py neutron PORT      Neutron's API, and its RPC listeners in the same process
    openstack_wsgi.py MODULE PORT       `application` of this module

Also a paste filter in the place of keystone's: everybody is an administrator of one project.
"""

import importlib
import os
import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

PROJECT = "d" * 32
IDENTITY = {
    "HTTP_X_IDENTITY_STATUS": "Confirmed",
    "HTTP_X_USER_ID": "u" * 32,
    "HTTP_X_PROJECT_ID": PROJECT,
    "HTTP_X_TENANT_ID": PROJECT,
    "HTTP_X_ROLES": "admin,service,member,reader",
    "HTTP_X_AUTH_TOKEN": "token",
    "HTTP_X_SERVICE_CATALOG": "[]",
    "HTTP_X_USER_DOMAIN_ID": "default",
    "HTTP_X_PROJECT_DOMAIN_ID": "default",
}


def everybody(global_conf, **local_conf):
    """Factory of the filter."""

    def wrap(application):
        def filtered(environ, start):
            environ.update(IDENTITY)
            return application(environ, start)

        return filtered

    return wrap


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def neutron():
    from neutron.wsgi.api import application
    from neutron_lib import context
    from neutron_lib.plugins import directory

    for plugin in directory.get_unique_plugins():
        try:
            plugin.start_rpc_listeners()
        except (AttributeError, NotImplementedError):
            pass  # a plugin without RPC

    def as_administrator(environ, start):
        # in keystone's place: without it, requests of the API have no project, and some need one
        environ["neutron.context"] = context.Context(
            user_id=IDENTITY["HTTP_X_USER_ID"], project_id=PROJECT, is_admin=True, roles=IDENTITY["HTTP_X_ROLES"].split(",")
        )
        return application(environ, start)

    return as_administrator


def main(module, port):
    sys.argv = [module]
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    application = neutron() if module == "neutron" else importlib.import_module(module).application
    with make_server("127.0.0.1", int(port), application, Server, Quiet) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
