"""Ray job: kills a job's processes on this machine. python -m jobs.kill JOB"""

import sys

from service.orchestration.entry import kill_entry

if __name__ == "__main__":
    sys.exit(kill_entry(sys.argv[1:]))
