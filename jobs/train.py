"""Ray job: trains a run. python -m jobs.train CONFIG [a.b=c ...] [--run-id ID]"""

import sys

from service.orchestration.versions import check_versions

if __name__ == "__main__":
    check_versions()
    # Only now: with other versions an import may fail.
    from service.orchestration.entry import train_entry

    sys.exit(train_entry(sys.argv[1:]))
