"""`make demo`: the same storm over gpools and over naive pools, side by side.

Read in this order: `naive` (what gpools is compared with), `load` (what every
greenlet does), `storm` (what happens to it), `verdict` (what gpools promises),
`screen` (what you see), `run` (all of it together).
"""
