"""Ray job: makes records. python -m jobs.ingest FOLDER RECORDS HEIGHTxWIDTH"""

import sys

from service.orchestration.versions import check_versions

if __name__ == "__main__":
    check_versions()
    # Only now: with other versions an import may fail.
    from service.orchestration.entry import ingest_entry

    sys.exit(ingest_entry(sys.argv[1:]))
