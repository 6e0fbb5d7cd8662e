"""The attack suite: programs that try to break out, judged from outside the sandbox, never by what they print."""
