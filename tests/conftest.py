"""Properties are judged by what they find: on a shared machine an example's time says little."""

from hypothesis import settings

settings.register_profile("without-deadline", deadline=None)
settings.load_profile("without-deadline")
