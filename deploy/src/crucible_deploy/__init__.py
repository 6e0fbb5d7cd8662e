"""Installs, starts and stops Crucible on one machine."""
