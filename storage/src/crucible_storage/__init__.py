"""The queue, the event log and the results."""
