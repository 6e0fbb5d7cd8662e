"""`make soak`: thousands of mixed programs through a whole stack, and whether anything of it grows.

What is looked at: memory, descriptors and threads of every process, and what the executor has on the host: processes,
cgroups, mounts and files of its sandboxes, and its own state.
"""
