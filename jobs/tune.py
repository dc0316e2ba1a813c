"""Ray job: runs or continues a sweep. python -m jobs.tune CONFIG [a.b=c ...] [--run-id ID]"""

import sys

from service.orchestration.entry import tune_entry

if __name__ == "__main__":
    sys.exit(tune_entry(sys.argv[1:]))
