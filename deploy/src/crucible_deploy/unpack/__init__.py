"""Unpacks foreign archives into one folder, in a process without any privilege (`crucible_deploy.unpacking` starts it).

Standard library only, and nothing of the rest of Crucible: these files travel to that process as one archive of their
own, so that it runs from no checkout and with an interpreter that every user can read.
"""
