"""Subclassing RedisPool for a client of one's own takes one method: create()."""

from gevent import monkey

monkey.patch_all()

import redis

from _servers import redis_url
from gpools import RedisPool


class Shop(redis.Redis):
    def sell(self, thing):
        return self.decr(f"gpools:stock:{thing}")


class ShopPool(RedisPool):
    def create(self):
        # With the settings of the pool: its URL, its timeouts, its one connection.
        return Shop(connection_pool=super().create().connection_pool)


with redis_url() as url, ShopPool(url, max_size=2, socket_timeout=5, name="shop") as pool:
    with pool.item() as shop:
        shop.set("gpools:stock:tea", 10)
        print("left:", shop.sell("tea"))
    with pool.item() as shop:
        print("left:", shop.sell("tea"))
        shop.delete("gpools:stock:tea")
    print(pool)
