"""The same work on us and on our peers, in turns, each in a process of its own interpreter."""
