"""What holds for all tests, however they are started.

Properties are judged by what they find: on a shared machine an example's time says little. A shell
lets what it starts in the background ignore SIGINT, and so would every command that a test stops.
Ranks that `launch` starts find what they need loaded, which else takes each of them seconds.
"""

import multiprocessing
import signal

from hypothesis import settings

settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")
signal.signal(signal.SIGINT, signal.default_int_handler)
multiprocessing.set_forkserver_preload(["service.training.loop"])
