"""What a program asks of gVisor's kernel, from the kernel's trace stream.

`tracer` is the executor's side and reads nothing of the stream; `reader` is a process of its own, without privilege,
that does, with `wire`, `actions` and `tally`. `points` says what the kernel is asked to tell.
"""
