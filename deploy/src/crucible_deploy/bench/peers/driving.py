"""How the benchmarks talk to a library that lives in another environment: one JSON line per program, both ways.

Standard library only: the driver files import it by its folder.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable


def drive(run: Callable[[str], bytes]) -> None:
    """Answers each `{"id", "code"}` line with `{"id", "seconds", "stdout" | "error"}`, each in a thread of its own.

    Args:
        run: runs a program to its end and returns its output; an exception is told as the error.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is none of our answers
    lock = threading.Lock()

    def answer(number: int, code: str) -> None:
        began = time.perf_counter()
        said: dict[str, object] = {"id": number}
        try:
            stdout = run(code)
            said |= {"seconds": time.perf_counter() - began, "stdout": stdout.decode(errors="replace")}
        except Exception as error:  # told to the one who asked
            said["error"] = f"{type(error).__name__}: {error}"[:500]
        with lock:
            answers.write(json.dumps(said) + "\n")

    running = []
    for line in sys.stdin:
        asked = json.loads(line)
        running.append(threading.Thread(target=answer, args=(asked["id"], asked["code"])))
        running[-1].start()
    for thread in running:
        thread.join()
