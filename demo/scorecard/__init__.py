"""`make scorecard`: other pools and ours through the same chaos, on docs/scorecard.md.

Read in this order: `contenders` (which pools, and how each is used), `slow_link`
(what stands between them and their server), `trials` (what each goes through),
`contest` (all of that, for one contender in a process of its own), `page` (how the
results read), `run` (all of it together).
"""
