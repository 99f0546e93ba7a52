"""`FairHTTPAdapter`: requests, with greenlets in line for a bounded number of connections."""

from __future__ import annotations

from typing import Any

from gpools.adapters._extra import extra

with extra("requests"):  # which brings urllib3, too
    from requests import PreparedRequest, Response
    from requests.adapters import DEFAULT_POOLSIZE, DEFAULT_RETRIES, HTTPAdapter
    from requests.exceptions import ConnectTimeout
    from urllib3 import Retry
    from urllib3.exceptions import EmptyPoolError

    from gpools.adapters.urllib3 import FairManager, make_fair, split_options

__all__ = ["FairHTTPAdapter"]


class FairHTTPAdapter(HTTPAdapter):
    """An `HTTPAdapter` of *pool_maxsize* connections for each host, with greenlets in line.

    ::

        session = requests.Session()
        adapter = FairHTTPAdapter(pool_maxsize=5, pool_timeout=10)
        session.mount("https://", adapter)
        session.mount("http://", adapter)

    A greenlet waits *pool_timeout* seconds at most; then requests' ConnectTimeout
    is raised, of which a `PoolTimeout` that tells who holds the connections is
    the cause of the cause.  With None, wait for ever.

    *pool_connections* and *max_retries* are those of `HTTPAdapter`.  What else
    there is are settings of `ConnectionPool`: ages, *max_waiting*, *shed*,
    *leak_after*, *listener* and so on, for each host.

    Raises TypeError and ValueError for parameters that neither would take.
    """

    __attrs__ = [*HTTPAdapter.__attrs__, "_pool_settings"]  # noqa: RUF012  # what is pickled

    def __init__(
        self,
        pool_connections: int = DEFAULT_POOLSIZE,
        pool_maxsize: int = DEFAULT_POOLSIZE,
        max_retries: int | Retry = DEFAULT_RETRIES,
        pool_block: bool = True,
        *,
        pool_timeout: float | None = None,
        **settings: Any,
    ) -> None:
        if not pool_block:
            raise ValueError(
                "pool_block is False but greenlets wait in line here; requests' own HTTPAdapter "
                "opens connections without limit"
            )
        self._pool_settings, unknown = split_options(pool_maxsize, pool_timeout, settings)
        if unknown:
            raise TypeError(f"FairHTTPAdapter takes no {', '.join(sorted(unknown))}")
        super().__init__(pool_connections, pool_maxsize, max_retries, pool_block)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = True, **pool_kwargs: Any
    ) -> None:
        """Make the manager of the pools, as `HTTPAdapter` does, and have it make fair ones."""
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs)
        make_fair(self.poolmanager, self._pool_settings)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        """Return the manager for *proxy*, as `HTTPAdapter` does, making fair pools."""
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        if not isinstance(manager, FairManager):
            make_fair(manager, self._pool_settings)
        return manager

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        """Send *request*, as `HTTPAdapter` does.

        Raises requests' ConnectTimeout if no connection came free.  Switches.
        """
        try:
            return super().send(request, *args, **kwargs)
        except EmptyPoolError as error:
            # Nothing was sent, which is what a ConnectTimeout says.
            raise ConnectTimeout(error, request=request) from error
