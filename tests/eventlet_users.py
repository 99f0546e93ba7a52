"""Subclasses in the shape of those that live on `eventlet.pools`.

Each is a function of the base class, so that the very same lines run on
eventlet and on gpools.  They are shaped after Cinder, Swift, oslo's rpc and a
crowd of storage drivers; nothing here is copied, and nothing is kinder to the
pool than its model is.
"""

__all__ = [
    "Line",
    "all_known_names",
    "careless_ssh_pool",
    "memcached_pool",
    "old_memcached_pool",
    "rpc_pool",
    "ssh_pool",
]


class Line:
    """Stands for an SSH client, a socket, a broker connection."""

    def __init__(self, number=0):
        self.number = number
        self.alive = True
        self.closed = 0

    def is_active(self):
        return self.alive

    def close(self):
        self.alive = False
        self.closed += 1


def ssh_pool(Pool):
    """Cinder: a get of its own, a put that closes on shrink, a `__del__` that drains."""

    class SSHPool(Pool):
        def __init__(self, ip, port, conn_timeout, login, password=None, *args, **kwargs):
            self.ip = ip
            self.port = port
            self.login = login
            self.password = password
            self.conn_timeout = conn_timeout if conn_timeout else None
            self.made = []
            if not login:
                raise ValueError("no login")
            super().__init__(*args, **kwargs)

        def create(self):
            if self.password is None:
                raise OSError("specify a password")
            line = Line(len(self.made) + 1)
            self.made.append(line)
            return line

        def get(self):
            if self.free_items:
                line = self.free_items.popleft()
                if line:
                    if line.is_active():
                        return line
                    line.close()
                    self.current_size -= 1
            if self.current_size < self.max_size:
                self.current_size += 1
                try:
                    return self.create()
                except Exception:
                    self.current_size -= 1
                    raise
            return self.channel.get()

        def put(self, line):
            if self.current_size > self.max_size:
                line.close()
                self.current_size -= 1
                return
            super().put(line)

        def remove(self, line):
            line.close()
            if line in self.free_items:
                self.free_items.remove(line)
                if self.current_size > 0:
                    self.current_size -= 1

        def __del__(self):
            if not self.current_size:
                return
            self.resize(1)
            while self.waiting() or self.current_size > 1:
                line = self.get()
                self.put(line)
            while self.free_items:
                self.free_items.popleft().close()
                self.current_size -= 1

    return SSHPool


def careless_ssh_pool(Pool):
    """Manila and the drivers: counts after `create`, waits in the channel."""

    class SSHPool(Pool):
        def create(self):
            return Line()

        def get(self):
            if self.free_items:
                line = self.free_items.popleft()
                if line:
                    if line.is_active():
                        return line
                    line.close()
                return self.create()
            if self.current_size < self.max_size:
                line = self.create()
                self.current_size += 1
                return line
            return self.channel.get()

        def remove(self, line):
            line.close()
            if line in self.free_items:
                self.free_items.remove(line)
            if self.current_size > 0:
                self.current_size -= 1

    return SSHPool


def memcached_pool(Pool, connect, Timeout):
    """Swift: connects in `create`, and gives back a fresh tuple each time."""

    class MemcacheConnPool(Pool):
        def __init__(self, server, size, connect_timeout):
            Pool.__init__(self, max_size=size)
            self.host, self.port = server.split(":")
            self._connect_timeout = connect_timeout

        def create(self):
            with Timeout(self._connect_timeout):
                sock = connect(self.host, self.port)
            return (f"file of {sock}", sock)

        def get(self):
            fp, sock = super().get()
            if fp is None:  # it broke in somebody's hands
                fp, sock = self.create()
            return fp, sock

        def return_conn(self, fp, sock):
            self.put((fp, sock))

        def broken(self):
            self.put((None, None))

    return MemcacheConnPool


def old_memcached_pool(Pool, connect):
    """Swift in the days of old eventlets: `get` counts against max_size by itself."""

    class MemcacheConnPool(Pool):
        def __init__(self, server, size):
            Pool.__init__(self, max_size=size)
            self.server = server
            self._parent_class_getter = self._fixed_get

        def create(self):
            sock = connect(*self.server.split(":"))
            return (f"file of {sock}", sock)

        def _fixed_get(self):
            if self.free_items:
                return self.free_items.popleft()
            self.current_size += 1
            if self.current_size <= self.max_size:
                try:
                    return self.create()
                except BaseException:
                    self.current_size -= 1
                    raise
            self.current_size -= 1
            return self.channel.get()

        def get(self):
            fp, sock = self._parent_class_getter()
            if fp is None:
                fp, sock = self.create()
            return fp, sock

    return MemcacheConnPool


def rpc_pool(Pool):
    """oslo's rpc: a stack, sized by the configuration, that `empty` closes."""

    class ConnectionPool(Pool):
        def __init__(self, conf, connection_cls, *args, **kwargs):
            self.connection_cls = connection_cls
            self.conf = conf
            kwargs.setdefault("max_size", conf["rpc_conn_pool_size"])
            kwargs.setdefault("order_as_stack", True)
            super().__init__(*args, **kwargs)
            self.reply_proxy = None

        def create(self):
            return self.connection_cls()

        def empty(self):
            while self.free_items:
                self.get().close()

    return ConnectionPool


# fmt: off
NAMES = (
    "args", "auth", "cleanup", "conf", "config", "connect_timeout", "created", "host",
    "hostname", "kwargs", "last_used", "lock", "login", "max_age", "max_idle", "password",
    "pool", "port", "server", "timeout", "url", "user",
)
METHODS = (
    "clear", "remove", "empty", "connect", "close", "check", "reset",
    "_create", "_is_expired", "_safe_close",
)
# fmt: on


def all_known_names(Pool):
    """Every attribute set and every method defined that some subclass is known to have."""

    class Everything(Pool):
        attributes = (*NAMES, *(f"_{name}" for name in NAMES))

        def __init__(self, *args, **kwargs):
            self.called = []
            for name in self.attributes:
                setattr(self, name, f"{name} before")
            super().__init__(*args, **kwargs)
            self.kept = [getattr(self, name) == f"{name} before" for name in self.attributes]
            for name in self.attributes:
                setattr(self, name, f"{name} after")

        def create(self):
            return Line()

    def recorder(name):
        def method(self, *args, **kwargs):
            self.called.append(name)
            raise AssertionError(f"the pool called {name}()")

        return method

    for name in METHODS:
        setattr(Everything, name, recorder(name))
    return Everything
