"""`make bench`: what Crucible costs on this machine, each figure beside its baseline from the same run.

One module per subject; `subjects.py` lists them, and adding one is a module and a line there. What is compared is
interleaved, so that a busy machine is unjust to neither side; where it is not (`batches`, the hundred at once of
`burst`) the two sides are measured one after the other.
"""
