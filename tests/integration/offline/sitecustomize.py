"""Python imports this first where this folder is on its path: connections to other machines are refused, and told."""

import os
import socket
from pathlib import Path

HERE = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "", socket.gethostname()}
REFUSED = "no network in tests"


def refuse_others(function, address_of):
    def guarded(*arguments, **options):
        address = address_of(*arguments)
        if address is not None and str(address) not in HERE:
            with Path(os.environ["REFUSED_CONNECTIONS"]).open("a") as log:
                log.write(f"{address}\n")
            raise OSError(f"{REFUSED}: {address}")
        return function(*arguments, **options)

    return guarded


def host(connection, address, *_):
    return address[0] if connection.family in (socket.AF_INET, socket.AF_INET6) else None


socket.socket.connect = refuse_others(socket.socket.connect, host)
socket.socket.connect_ex = refuse_others(socket.socket.connect_ex, host)
socket.getaddrinfo = refuse_others(socket.getaddrinfo, lambda name, *_: name if name is None else _text(name))


def _text(name):
    return name.decode() if isinstance(name, bytes) else name
