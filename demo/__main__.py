"""Run the demo; see `demo.run`."""

from gevent import monkey

monkey.patch_all()

from demo.run import main  # noqa: E402

main()
