"""Tails the event log and serves watchers."""
