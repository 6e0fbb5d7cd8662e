"""The unpacking process: one job as its only argument, one line of JSON as its answer."""

import json
import sys

from crucible_deploy.unpack.errors import ArchiveError
from crucible_deploy.unpack.job import Job, run


def main() -> None:
    """Does the job and says how it went; `{"error": "..."}` when the archive cannot be taken."""
    try:
        answer = run(Job(**json.loads(sys.argv[1])))
    except ArchiveError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "it needs more memory than unpacking may have"}
    print(json.dumps(answer))  # noqa: T201  # the answer


if __name__ == "__main__":
    main()
