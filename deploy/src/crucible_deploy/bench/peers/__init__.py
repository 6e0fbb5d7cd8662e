"""Other ways to run an untrusted program, beside our engines: how fast, and behind what."""
