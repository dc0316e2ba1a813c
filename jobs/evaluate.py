"""Ray job: evaluates a run. python -m jobs.evaluate RUN [--checkpoint best]"""

import sys

from service.orchestration.versions import check_versions

if __name__ == "__main__":
    check_versions()
    # Only now: with other versions an import may fail.
    from service.orchestration.entry import evaluate_entry

    sys.exit(evaluate_entry(sys.argv[1:]))
