"""Proves that a database is whole: every evaluation against its events, every count against a recount.

Reads only, page by page, so that memory does not grow with the database.
"""
