"""`make chaos`: processes killed and paused at random moments while programs run, and whether anything was lost.

The judges look from outside: a runsc that writes down what it starts, and the host's own list of processes.
"""
