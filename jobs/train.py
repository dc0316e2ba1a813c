"""Ray job: trains a run. python -m jobs.train CONFIG [a.b=c ...] [--run-id ID]"""

import sys

from service.orchestration.entry import train_entry

if __name__ == "__main__":
    sys.exit(train_entry(sys.argv[1:]))
