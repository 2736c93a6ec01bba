"""Programs nobody vouches for, run in processes that can be killed and that reach nothing.

`pool` is the side of the caller. All else runs in a server process of its own and imports the standard library alone.
"""
