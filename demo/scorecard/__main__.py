"""Make the scorecard; see `demo.scorecard.run`."""

from demo.scorecard.run import main

main()
