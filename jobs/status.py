"""Ray job: says where a run stands. python -m jobs.status RUN_FOLDER"""

import sys

from service.orchestration.versions import check_versions

if __name__ == "__main__":
    check_versions()
    # Only now: with other versions an import may fail.
    from service.orchestration.entry import status_entry

    sys.exit(status_entry(sys.argv[1:]))
