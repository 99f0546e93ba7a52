"""Subclassing: the pool keeps the settings, create() uses them, put() looks at what comes back."""

from itertools import count

from gpools import Pool


class Session:
    numbers = count(1)

    def __init__(self, user, host):
        self.name = f"{user}@{host} session {next(self.numbers)}"
        self.expired = False


class SessionPool(Pool):
    def __init__(self, user, host, **options):
        self.user, self.host = user, host
        super().__init__(**options)

    def create(self):
        return Session(self.user, self.host)

    def put(self, session):
        if session.expired:
            self.current_size -= 1  # drop it: the next get() makes another
        else:
            super().put(session)


pool = SessionPool("ann", "db1", max_size=1)
for expired in (False, True, False):
    with pool.item() as session:
        print(session.name)
        session.expired = expired
print(pool)
