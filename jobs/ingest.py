"""Ray job: makes records. python -m jobs.ingest FOLDER RECORDS HEIGHTxWIDTH"""

import sys

from service.orchestration.entry import ingest_entry

if __name__ == "__main__":
    sys.exit(ingest_entry(sys.argv[1:]))
