"""Ray job: runs or continues a sweep. python -m jobs.tune CONFIG [a.b=c ...] [--run-id ID]"""

import sys

from service.orchestration.versions import check_versions

if __name__ == "__main__":
    check_versions()
    # Only now: with other versions an import may fail.
    from service.orchestration.entry import tune_entry

    sys.exit(tune_entry(sys.argv[1:]))
