"""The tree of errors that Paceline raises on purpose.

::

    PacelineError
    ├── ConfigError         a setting, policy file or command-line argument is wrong
    │   └── DamagedDrafterError   files of a drafter are not those of one that fits the target
    ├── DraftError          the draft memory was asked for something it does not hold
    ├── RecordError         a record read from another process cannot be used
    ├── CorpusError         a corpus cannot be built, found or removed
    ├── JournalError        the shared journal cannot be used
    ├── SnapshotError       a snapshot of the draft memory cannot be written or loaded
    ├── LearningError       what a drafter is to be taught cannot be had
    ├── EngineError         the embedded engine cannot serve a request
    └── UnsupportedError    an installed version or platform lies outside the tested range

A message names the value, the limit and the fix, so that the command line prints it as it stands.
"""


class PacelineError(Exception):
    """Base of every error that Paceline raises on purpose."""


class ConfigError(PacelineError):
    """A setting, policy file or command-line argument is wrong."""


class DamagedDrafterError(ConfigError):
    """Files of a drafter are damaged, or not those of a drafter of this target."""


class DraftError(PacelineError):
    """The draft memory was asked for something it does not hold."""


class RecordError(PacelineError):
    """A record read from another process cannot be used (malformed, or from a newer schema)."""


class CorpusError(PacelineError):
    """A corpus cannot be built, found or removed."""


class JournalError(PacelineError):
    """The shared journal cannot be used (bad URL, refused credentials, foreign data)."""


class SnapshotError(PacelineError):
    """A snapshot of the draft memory cannot be written or loaded."""


class LearningError(PacelineError):
    """What a drafter is to be taught cannot be had (a teacher that refuses, or does not answer)."""


class EngineError(PacelineError):
    """The embedded engine cannot serve a request."""


class UnsupportedError(PacelineError):
    """An installed version or platform lies outside the tested range."""
