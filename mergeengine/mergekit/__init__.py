"""mergekit's configurations: each becomes the plan, or the chain, that says the same.

There is one translation, from the tree of the configuration to that of a plan, whose nodes keep
the places of the former: `run` builds it, and `convert` writes it down. What it knows of mergekit
is how version 0.1.5 behaves.
"""
