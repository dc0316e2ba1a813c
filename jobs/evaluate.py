"""Ray job: evaluates a run. python -m jobs.evaluate RUN"""

import sys

from service.orchestration.entry import evaluate_entry

if __name__ == "__main__":
    sys.exit(evaluate_entry(sys.argv[1:]))
