"""An SSH server that says what it was asked to, and is slow where the command says so."""

import argparse
import socket as stdlib
import sys
import threading
import time
from contextlib import suppress

from gevent import socket

from tests.servers import Server

__all__ = ["SshServer"]

USER, PASSWORD = "ann", "secret"


class SshServer(Server):
    """`tests.ssh_server` in a process of its own; its user is ann, her password secret."""

    @classmethod
    def missing(cls):
        try:
            import paramiko  # noqa: F401
        except ImportError:
            return "paramiko is not installed"
        return None

    def command(self):
        return [sys.executable, "-m", "tests.ssh_server", "--port", self.port]

    def answers(self):
        with socket.create_connection(self.address, timeout=10) as client:
            return client.recv(4) == b"SSH-"

    def reset(self):
        """Nothing to forget."""


def serve(connection, key):
    import paramiko

    class Doorman(paramiko.ServerInterface):
        def check_auth_password(self, username, password):
            well = (username, password) == (USER, PASSWORD)
            return paramiko.AUTH_SUCCESSFUL if well else paramiko.AUTH_FAILED

        def check_channel_request(self, kind, chanid):
            return paramiko.OPEN_SUCCEEDED

        def check_channel_exec_request(self, channel, command):
            threading.Thread(target=answer, args=(channel, command), daemon=True).start()
            return True

    def answer(channel, command):
        time.sleep(5 if b"slow" in command else 0)
        channel.sendall(b"you said " + command + b"\n")
        channel.send_exit_status(0)
        # To close it might overtake the word that the request is granted.
        channel.shutdown_write()

    transport = paramiko.Transport(connection)
    transport.add_server_key(key)
    with suppress(paramiko.SSHException, EOFError):  # who only looks whether anybody is there
        transport.start_server(server=Doorman())


def main():
    import paramiko

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    key = paramiko.ECDSAKey.generate()
    with stdlib.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, key), daemon=True).start()


if __name__ == "__main__":
    main()
